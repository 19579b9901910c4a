"""An OpenAI-compatible server: the base and one or several adapters, by name, over one copy of the weights.

A request is checked before anything is computed (requests.py, asking.py), becomes rows of the engine's batch,
and is answered in OpenAI's form (responses.py), whole or as events.
"""
