"""What several tests share: models, oracles, servers."""
