"""Speaks protobuf and gRPC, and decides nothing."""
