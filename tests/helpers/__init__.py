"""What tests share: tiny models, twins, planted mechanisms, facts."""
