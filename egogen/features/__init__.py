"""What stage 1 hands to stage 2: feature stores, their shards and their projector."""
