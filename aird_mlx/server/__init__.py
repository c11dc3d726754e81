"""A GGUF file served with its checks: verified and selftested, then asked over HTTP or in the terminal, with a guard.

`checks` decides whether a file may be served; `engine` runs it; `guard` reads the probe of every prompt and holds back
what should not be said; `app` speaks the OpenAI protocol. Nothing is imported here: the web packages are optional.
"""
