"""Finding pictures or clips by text, and texts by picture or clip: data, metrics, training."""
