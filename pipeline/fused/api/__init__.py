"""What exported models answer to: a file for each API, written into the folders that have it.

An API is a subclass of `UniPTModel` with a forward pass of its own, a file here and a line below; a
system names it as its `api`.
"""

APIS = {
    "sequence_classification": "UniPTForSequenceClassification",
    "retrieval": "UniPTForRetrieval",
}
"""File -> its class."""
