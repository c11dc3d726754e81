"""What is checked about a GGUF file before it is trusted: its bytes, its template, and whether it still refuses.

`structure` reads a file that may be hostile; `manifest` is what the export writes into it about itself; `verify`
compares the two and needs neither MLX nor llama.cpp. `probe`, `canaries` and `selftest` run the file in llama.cpp.
Nothing is imported here, so that verifying imports only what it needs.
"""
