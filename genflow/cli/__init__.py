"""The command line: ``genflow generate, evaluate, train, info``. It parses, plans and reports; arithmetic stays out."""
