// The same as avx2vnni.cpp for processors that have these products by AVX-512's encoding alone: so that they test it.
#define GALAGO_VNNI "evex"
#define GALAGO_TABLE avx2vnni512_kernels
#include "avx2vnni.cpp"
