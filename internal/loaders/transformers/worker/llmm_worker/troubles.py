"""What an exception of torch, CUDA or onnxruntime means for the process. Told by its words, since the classes differ from
version to version; nothing is imported for it."""

import re

MEMORY = re.compile(r"out of memory|DefaultCPUAllocator: (?:can't|not enough)|failed to allocate memory|bad_alloc|CUDA failure 2\b|STATUS_ALLOC_FAILED",
                    re.IGNORECASE)
CUDA = re.compile(r"CUDA error:|CUDA failure \d|device-side assert|(?:CUBLAS|CUDNN)_STATUS_(?:EXECUTION_FAILED|INTERNAL_ERROR|MAPPING_ERROR)", re.IGNORECASE)


def out_of_memory(e):
    """There was no room for this work; with less of it all is well."""
    return isinstance(e, MemoryError) or type(e).__name__ in ("OutOfMemory", "OutOfMemoryError") or MEMORY.search(str(e)) is not None


def fatal(e):
    """CUDA has failed: whatever this process asks of it from now on fails, too."""
    return not out_of_memory(e) and (type(e).__name__ == "AcceleratorError" or CUDA.search(str(e)) is not None)
