"""Files of captions in the layouts that published data sets have, each read into rows."""
