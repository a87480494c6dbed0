"""One module per vLLM platform that the switch acts on.

Each has ``matches(platform)``, which takes vLLM's ``current_platform``, and
``install(setting, vllm_package, vllm_version)``, which checks the code it hooks and hooks it.
"""
