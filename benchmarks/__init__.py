"""One function per published number or figure; results are JSON files beside them."""
