"""Words, sentences and how alike texts are."""
