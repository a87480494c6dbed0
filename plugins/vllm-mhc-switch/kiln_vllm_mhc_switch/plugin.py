"""vLLM's way in: the entry point ``kiln_mhc_switch`` of group ``vllm.general_plugins``.

vLLM calls :func:`register` in every process (server, engine, workers, model inspection), before
any model is built, and lets what it raises end the process. What a plugin's *import* raises vLLM
only logs; so nothing of vLLM's is imported at the top of this package.
"""

from __future__ import annotations

import logging
import os

from kiln_vllm_mhc_switch import setting as settings
from kiln_vllm_mhc_switch.errors import NotActiveHereError
from kiln_vllm_mhc_switch.platforms import cpu, rocm

logger = logging.getLogger("vllm.kiln.mhc")

PLATFORMS = (cpu, rocm)


def register() -> None:
    """Install the switch for the platform that vLLM runs on. Idempotent.

    Raises a :class:`~kiln_vllm_mhc_switch.errors.SwitchError`: the variable's value is neither
    on nor off; it is set on a platform this package does not switch, or asks for kernels that are
    not there or wrong on this GPU; or the code to hook is not what this package knows, whether the
    variable is set or not.
    """
    import vllm
    from vllm import envs
    from vllm.platforms import current_platform

    setting = settings.read(os.environ)
    version = str(vllm.__version__)
    for platform in PLATFORMS:
        if platform.matches(current_platform):
            settings.make_known(envs.environment_variables, setting)
            platform.install(setting, vllm, version)
            return
    name = str(current_platform.device_type)
    if settings.known_to_vllm(envs.environment_variables):
        logger.info(
            "kiln-mhc: not active, vLLM %s has the switch itself platform=%s", version, name
        )
        return
    if setting.raw is not None:
        raise NotActiveHereError(
            f"{settings.VARIABLE}={setting.raw} is set, but kiln-vllm-mhc-switch does not switch "
            f"vLLM {version} on the platform {name!r} (only: cpu, rocm), so it would have no effect: "
            f"unset it, or use a vLLM that has the switch itself"
        )
    logger.info("kiln-mhc: not active on this platform platform=%s vllm=%s", name, version)
