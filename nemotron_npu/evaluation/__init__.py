"""Error rates of transcripts against reference texts."""
