"""Objects: bytes under keys, in a folder or an S3 bucket, that several processes change safely."""
