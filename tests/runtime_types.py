"""The checker of annotations in tests: beartype, taking an int for a float as the typing rules do."""

from beartype import BeartypeConf, beartype

check = beartype(conf=BeartypeConf(is_pep484_tower=True))
