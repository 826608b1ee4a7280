"""From a trained model to a registered one: export, record, judge, look up, predict."""
