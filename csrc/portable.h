// Functions of the host and of a device: written once, compiled by both.
#pragma once

#ifdef __CUDACC__
#define PIXELREFER_FAST_BOTH __host__ __device__ __forceinline__
#else
#define PIXELREFER_FAST_BOTH inline
#endif
