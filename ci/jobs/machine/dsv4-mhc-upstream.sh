#!/usr/bin/env bash
# Rendered by `kiln ci render dsv4-mhc-upstream`: edit templates/ci/machine.sh.j2. How to use it: docs/ci.md.
# Builds dsv4-mhc-upstream and looks at it with every cell that this machine can run. Reports lie in reports/CELL/. Ends with the first bad cell's exit code.
#   KILN_CHECKOUT=DIR   the checkout (default: the one around the current folder)
#   KILN_CACHE=HOST/NAME  takes what is built from there instead of building it
#   KILN_GATES=1        measures too, with KILN_MODEL=DIR and KILN_DATA=DIR (hours)
set -euo pipefail
cd "${KILN_CHECKOUT:-$(git rev-parse --show-toplevel)}"

make tools
kiln=$PWD/.kiln/venv/bin/kiln

"$kiln" doctor dsv4-mhc-upstream --for build --for verify-generate
"$kiln" build dsv4-mhc-upstream

levels=(--level static --level generate)
more=()
if [ "${KILN_GATES:-}" = 1 ]; then
    levels+=(--level gates)
    more+=(${KILN_MODEL:+--model "$KILN_MODEL"} ${KILN_DATA:+--data "$KILN_DATA"})
fi
cells=$("$kiln" ci matrix dsv4-mhc-upstream --here --fewest "${levels[@]}")

status=0
for cell in $cells; do
    given=()
    case $cell in *-gates) given=("${more[@]}") ;; esac
    code=0
    "$kiln" ci verify "$cell" --reports "reports/$cell" "${given[@]}" || code=$?
    for report in reports/"$cell"/*.json; do
        # It ends as the verification did, which is known already.
        "$kiln" report "$report" --format junit --out "${report%.json}.xml" >/dev/null || true
    done
    [ "$status" != 0 ] || status=$code
done
exit "$status"
