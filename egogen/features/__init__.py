"""What stage 1 tells stage 2: feature stores, their shards and their projector."""
