WHOSE = "a stand-in for the kernels that Triton ships"
