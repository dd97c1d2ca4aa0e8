"""Files of vectors: HDF5, .npy arrays and Parquet; written whole, resumable."""
