"""The model: loading it, its adapters, log-probabilities with shared prefixes, sampling."""
