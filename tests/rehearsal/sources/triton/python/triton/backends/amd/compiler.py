BACKEND = "amd"
