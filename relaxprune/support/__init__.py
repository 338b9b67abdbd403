"""Small helpers that know nothing of pruning: durable writes, memory, markup."""
