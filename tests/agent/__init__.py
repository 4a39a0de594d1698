"""The real agent against a strict fake of the API server, over HTTP."""
