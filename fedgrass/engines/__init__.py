"""Training engines. LiteRT is the default; the others are adapters that are imported only when named."""
