"""The Solana side: the only importer of solders and solana."""
