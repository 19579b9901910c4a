"""From a topic's name to training rows: questions, guarded answers, retain rows."""
