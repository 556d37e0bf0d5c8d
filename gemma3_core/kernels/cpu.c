/* What torch does slowly on a CPU, for x86-64 processors; cpu.py builds and calls it.
 *
 * rms_norm: in one pass over each row what takes torch a dozen operations. AVX2 or AVX-512.
 *
 *     out[m, n] = x[m, n] / sqrt(mean of x[m, :] squared + eps) * (1 + weight[n])
 *
 * dense_multiply: a few rows times weights, as fast as the memory gives the weights. AVX2 or AVX-512.
 *
 *     out[m, n] = sum over k of x[m, k] * weight[n, k], + bias[n]
 *
 * int4_multiply: rows times int4 weights. AVX2, or AVX-512 with VNNI and VBMI.
 *
 *     out[m, n] = sum over k of x[m, k] * ((q[n, k] - 8) * scale[n, k / G] + zero[n, k / G])
 *
 * decoder_layer: a decoder layer for one new token of each row, in one call; of the parts above, with attention over a
 * cache. Its parts are so small in a small model that calling them takes longer than their work.
 *
 * Activations of int4_multiply become 16-bit integers, one scale for each run of G: 256 times finer than the usual
 * 8 bits, finer than bfloat16. Sums of integers are exact, and all further arithmetic is in float32 and in one order,
 * so every processor gets the same result.
 *
 * int4 weights lie as torch's _convert_weight_to_int4pack_for_cpu leaves them: blocks of B rows, in each B / 2 bytes
 * for a column, whose lower halves are the first half of the rows and whose upper halves the second. B is 64 where
 * torch uses AVX-512, and 32 where it uses AVX2.
 */
#include <float.h>
#include <immintrin.h>
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define AVX512 __attribute__((target("avx512f,avx512bw,avx512vl,avx512vbmi,avx512vnni,fma")))
#define AVX2 __attribute__((target("avx2,fma")))
#define LARGEST_BLOCK 64 /* rows of int4 weights */
#define AT_A_TIME 64 /* rows of x: as integers these stay in a processor's own cache */
#define WORTH_SHARING 32768 /* numbers that take longer than to wake another thread */
#define WIDEST 16 /* numbers of 32 bits in a register */
#define TOGETHER 3 /* weights of one input */
#define PAGE 4096 /* bytes */
#define INTO_L1 3 /* where __builtin_prefetch puts what comes next */
#define INTO_L2 2 /* and what comes a page later */
#define LARGEST 32639.0f /* 127 * 256 + 127: what two signed bytes hold */

/* The thread pool that torch has, not one of our own: these come from the OpenMP library it has loaded. */
extern void GOMP_parallel(void (*work)(void *), void *data, unsigned threads, unsigned flags);
extern int omp_get_thread_num(void);
extern int omp_get_num_threads(void);

static void quantize_512(void *data);
AVX2 static void quantize_256(void *data);
AVX512 static void multiply_int4_512(void *data);
AVX2 static void multiply_int4_256(void *data);

typedef struct {
    const void *x, *weight; /* [M, N] and [N], float32 or bfloat16 */
    void *out;              /* as x */
    int64_t rows, width;
    float eps;
    int bfloat16, bfloat16_weight; /* of x and out; of the weight */
} Norm;

typedef struct {
    const void *x;                  /* [M, K], float32 or bfloat16 */
    const uint8_t *packed;          /* [N / B, K, B / 2] */
    const uint32_t *scale_and_zero; /* [K / G, N], bfloat16 each, the scale in the lower half */
    int symmetric;                  /* zero is 0, and the two numbers are the parts of a finer scale */
    void *out;                      /* [M, N], as x */
    int64_t rows, inputs, outputs, group, block;
    int bfloat16;
    int8_t *high, *low; /* [M, K]; AVX2 has 16-bit integers in their place */
    float *scales;      /* [M, K / G] */
    int32_t *sums;      /* [M, K / G], of the integers */
    float *totals;      /* [threads, AT_A_TIME, LARGEST_BLOCK] */
} Product;

typedef struct {
    const float *x;      /* [M, K]; beside bfloat16 [M, 2, K / 2], what is even before what is odd */
    const void *weight;  /* [N, K], float32 or bfloat16 */
    const float *bias;   /* [N] or NULL */
    float *out;          /* [M, N] */
    int64_t rows, inputs, outputs;
    int bfloat16;
} Dense;

/* A weight [N, K] of a layer: dense, or int4 where there is a group size. */
typedef struct {
    const void *weight;
    const uint32_t *scale_and_zero;
    int64_t inputs, outputs, group, symmetric, block;
} Weight;

typedef struct {
    Weight q, k, v, o, gate, up, down; /* int4 weights share a group size and a block */
    const void *input_norm, *query_norm, *key_norm, *after_attention_norm, *before_mlp_norm, *after_mlp_norm;
    int64_t heads, kv_heads, head_dim;
    float scale, eps;
    int bfloat16; /* of all but int4 weights */
} Layer;

/* The cache of one row: keys and values [KV heads, S, D]. The new token goes to a column, and attends to `seen`. */
typedef struct {
    void *keys, *values;
    int64_t head_stride, column, seen;
} Place;

/* Where a layer keeps what it computes, [M, ...]. */
typedef struct {
    float *state, *normed, *q, *k, *v, *mixed, *gate, *up, *parted, *scores, *scales, *totals;
    int32_t *sums;
    int8_t *high, *low;
    int64_t longest; /* of `seen`, in whole registers */
} Room;

enum { NOTHING, OF_AVX2, OF_AVX512 };
static int level;

/* Chooses by what the processor has, `most` at most: 0 is nothing, 1 AVX2, 2 AVX-512 with VNNI and VBMI. */
int choose_level(int most) {
    __builtin_cpu_init();
    level = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") ? OF_AVX2 : NOTHING;
    if (level && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512vbmi") &&
        __builtin_cpu_supports("avx512vnni"))
        level = OF_AVX512;
    if (level > most) level = most;
    return level;
}

/* The kernel for AVX-512 takes blocks of 64 rows of int4 weights only. */
static int in_512(int64_t block) { return level == OF_AVX512 && (block == 0 || block == 64); }

AVX512 static inline __m512 widened(__m256i bfloat16) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bfloat16), 16));
}

AVX2 static inline __m256 widened_256(__m128i bfloat16) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bfloat16), 16));
}

AVX2 static inline float total_256(__m256 value) {
    __m128 half = _mm_add_ps(_mm256_castps256_ps128(value), _mm256_extractf128_ps(value, 1));
    half = _mm_add_ps(half, _mm_movehl_ps(half, half));
    return _mm_cvtss_f32(_mm_add_ss(half, _mm_movehdup_ps(half)));
}

#define TARGET AVX512
#define LANES 16
#define TALL 4
#define NAMED(name) name##_512
#define TOTAL(value) _mm512_reduce_add_ps(value)
#define FUSED(a, b, c) _mm512_fmadd_ps(a, b, c)
#define WIDENED(from) widened(_mm256_loadu_si256((const __m256i *)(from)))
#include "rows.h"

#define TARGET AVX2
#define LANES 8
#define TALL 2
#define NAMED(name) name##_256
#define TOTAL(value) total_256(value)
#define FUSED(a, b, c) _mm256_fmadd_ps(a, b, c)
#define WIDENED(from) widened_256(_mm_loadu_si128((const __m128i *)(from)))
#include "rows.h"

/* N is a multiple of 16. */
void rms_norm(const void *x, const void *weight, void *out, int64_t rows, int64_t width, float eps, int bfloat16,
              int threads) {
    Norm p = {.x = x, .weight = weight, .out = out, .rows = rows, .width = width, .eps = eps, .bfloat16 = bfloat16,
              .bfloat16_weight = bfloat16};
    if (threads > rows) threads = (int)rows;
    if (rows * width < WORTH_SHARING) threads = 1;
    GOMP_parallel(level == OF_AVX512 ? normalise_512 : normalise_256, &p, (unsigned)threads, 0);
}

/* K is a multiple of 16, of 32 for bfloat16. */
void dense_multiply(const float *x, const void *weight, const float *bias, float *out, int64_t rows, int64_t inputs,
                    int64_t outputs, int bfloat16, int threads) {
    Dense p = {.x = x, .weight = weight, .bias = bias, .out = out, .rows = rows, .inputs = inputs, .outputs = outputs,
               .bfloat16 = bfloat16};
    if (inputs * outputs < WORTH_SHARING) threads = 1;
    GOMP_parallel(level == OF_AVX512 ? multiply_dense_512 : multiply_dense_256, &p, (unsigned)threads, 0);
}

#include "int4_avx512.h"
#include "int4_avx2.h"

/* 0, or 1 where there is no memory. K is a multiple of G, G of 16, N of B. */
int int4_multiply(const void *x, const uint8_t *packed, const uint32_t *scale_and_zero, void *out, int64_t rows,
                  int64_t inputs, int64_t outputs, int64_t group, int64_t block, int symmetric, int bfloat16,
                  int threads) {
    int64_t groups = rows * (inputs / group), integers = rows * inputs;
    if (threads > outputs / block) threads = (int)(outputs / block);
    char *room = malloc((size_t)(groups * 8 + threads * AT_A_TIME * LARGEST_BLOCK * 4 + 2 * integers));
    if (room == NULL) return 1;
    Product p = {.x = x, .packed = packed, .scale_and_zero = scale_and_zero, .out = out, .rows = rows,
                 .inputs = inputs, .outputs = outputs, .group = group, .block = block, .symmetric = symmetric,
                 .bfloat16 = bfloat16};
    p.scales = (float *)room;
    p.sums = (int32_t *)(p.scales + groups);
    p.totals = (float *)(p.sums + groups);
    p.high = (int8_t *)(p.totals + (int64_t)threads * AT_A_TIME * LARGEST_BLOCK);
    p.low = p.high + integers;
    GOMP_parallel(in_512(block) ? quantize_512 : quantize_256, &p, rows > 1 ? (unsigned)threads : 1, 0);
    GOMP_parallel(in_512(block) ? multiply_int4_512 : multiply_int4_256, &p, (unsigned)threads, 0);
    free(room);
    return 0;
}

static int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }

/* 0, or 1 where there is no memory. x and out [M, E], cosines and sines [M, D]. */
int decoder_layer(const Layer *l, const void *x, const void *cosines, const void *sines, const Place *places, void *out,
                  int64_t rows, int threads) {
    int64_t width = l->q.inputs, inner = l->gate.outputs, queries = l->q.outputs, keys = l->k.outputs, longest = 0;
    int64_t widest = larger(larger(width, inner), queries);
    for (int64_t row = 0; row < rows; row++) longest = larger(longest, places[row].seen);
    longest = (longest + WIDEST - 1) / WIDEST * WIDEST;
    Room room = {.longest = longest};
    float **parts[] = {&room.state, &room.normed, &room.q, &room.k, &room.v, &room.mixed, &room.gate, &room.up,
                       &room.parted, &room.scales, &room.scores, &room.totals};
    int64_t sizes[] = {rows * width, rows * width, rows * queries, rows * keys, rows * keys, rows * queries,
                       rows * inner, rows * inner, rows * widest, rows * widest, threads * longest,
                       threads * AT_A_TIME * LARGEST_BLOCK};
    int64_t floats = 0, integers = rows * widest;
    for (size_t n = 0; n < sizeof sizes / sizeof *sizes; n++) floats += sizes[n];
    float *memory = malloc((size_t)(floats * 4 + integers * 6));
    if (memory == NULL) return 1;
    float *next = memory;
    for (size_t n = 0; n < sizeof sizes / sizeof *sizes; n++) *parts[n] = next, next += sizes[n];
    room.sums = (int32_t *)next;
    room.high = (int8_t *)(room.sums + integers);
    room.low = room.high + integers;
    const Weight *weights[] = {&l->q, &l->k, &l->v, &l->o, &l->gate, &l->up, &l->down};
    int64_t block = 0;
    for (int n = 0; n < 7; n++) block = larger(block, weights[n]->block);
    (in_512(block) ? layer_512 : layer_256)(l, &room, x, cosines, sines, places, out, rows, threads);
    free(memory);
    return 0;
}
