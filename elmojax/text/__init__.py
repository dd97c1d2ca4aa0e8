"""Words to arrays, with numpy alone: characters, vocabularies, prepared corpora."""
