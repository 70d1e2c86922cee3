"""Paint COCO instance annotations into masks and pack image + mask into shards."""
