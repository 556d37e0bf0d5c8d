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
 * int4_multiply: rows times int4 weights. AVX-512 VNNI and VBMI.
 *
 *     out[m, n] = sum over k of x[m, k] * ((q[n, k] - 8) * scale[n, k / G] + zero[n, k / G])
 *
 * decoder_layer: a decoder layer for one new token of each row, in one call; of the parts above, with attention over a
 * cache. Its parts are so small in a small model that calling them takes longer than their work.
 *
 * Activations of int4_multiply become 16-bit integers, one scale for each run of G: 256 times finer than the usual 8 bits, finer than
 * bfloat16. An integer is split in two signed bytes, x = 256 * high + low, because what the processor multiplies
 * quickly is bytes, four at a time (vpdpbusd); the sums are exact, and all further arithmetic is in float32.
 *
 * Weights lie as torch's _convert_weight_to_int4pack_for_cpu leaves them: blocks of 64 rows, in each 32 bytes for a
 * column, whose lower halves are rows 0 to 31 and whose upper halves are rows 32 to 63.
 */
#include <float.h>
#include <immintrin.h>
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define AVX512 __attribute__((target("avx512f,avx512bw,avx512vl,avx512vbmi,avx512vnni,fma")))
#define AVX2 __attribute__((target("avx2,fma")))
#define BLOCK 64 /* rows of weights */
#define VECTORS (BLOCK / 16)
#define AT_A_TIME 64 /* rows of x: as integers these stay in a processor's own cache */
#define WORTH_SHARING 32768 /* numbers that take longer than to wake another thread */
#define TOGETHER 3 /* weights of one input */
#define LARGEST 32639.0f /* 127 * 256 + 127: what two signed bytes hold */

/* The thread pool that torch has, not one of our own: these come from the OpenMP library it has loaded. */
extern void GOMP_parallel(void (*work)(void *), void *data, unsigned threads, unsigned flags);
extern int omp_get_thread_num(void);
extern int omp_get_num_threads(void);

static void quantize(void *data);
AVX512 static void multiply(void *data);

typedef struct {
    const void *x, *weight; /* [M, N] and [N], float32 or bfloat16 */
    void *out;              /* as x */
    int64_t rows, width;
    float eps;
    int bfloat16, bfloat16_weight; /* of x and out; of the weight */
} Norm;

typedef struct {
    const void *x;                  /* [M, K], float32 or bfloat16 */
    const uint8_t *packed;          /* [N / 64, K, 32] */
    const uint32_t *scale_and_zero; /* [K / G, N], bfloat16 each, the scale in the lower half */
    int symmetric;                  /* zero is 0, and the two numbers are the parts of a finer scale */
    void *out;                      /* [M, N], as x */
    int64_t rows, inputs, outputs, group;
    int bfloat16;
    int8_t *high, *low; /* [M, K] */
    float *scales;      /* [M, K / G] */
    int32_t *sums;      /* [M, K / G], of the integers */
    float *totals;      /* [threads, 64, 64] */
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
    int64_t inputs, outputs, group, symmetric;
} Weight;

typedef struct {
    Weight q, k, v, o, gate, up, down; /* int4 weights share a group size */
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

enum { NOTHING, WITHOUT_INT4, WHOLE };
static int level;

/* Chooses by what the processor has, `most` at most: 0 is nothing, 1 all but int4_multiply (AVX2), 2 all. */
int choose_level(int most) {
    __builtin_cpu_init();
    level = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") ? WITHOUT_INT4 : NOTHING;
    if (level && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512vbmi") &&
        __builtin_cpu_supports("avx512vnni"))
        level = WHOLE;
    if (level > most) level = most;
    return level;
}

int has_int4(void) { return level == WHOLE; }

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

AVX512 static inline __m512 loaded(const void *x, int bfloat16, int64_t at) {
    if (bfloat16) return widened(_mm256_loadu_si256((const __m256i *)((const uint16_t *)x + at)));
    return _mm512_loadu_ps((const float *)x + at);
}

/* Rounds to the nearest, ties to even, as torch does; not a number stays one. */
AVX512 static inline void store(void *out, int bfloat16, int64_t at, __m512 value) {
    if (!bfloat16) {
        _mm512_storeu_ps((float *)out + at, value);
        return;
    }
    __m512i bits = _mm512_castps_si512(value);
    __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    __m512i rounded = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
    __mmask16 nan = _mm512_cmp_ps_mask(value, value, _CMP_UNORD_Q);
    rounded = _mm512_mask_set1_epi32(rounded, nan, 0x7fc00000);
    __m256i half = _mm512_cvtepi32_epi16(_mm512_srli_epi32(rounded, 16));
    _mm256_storeu_si256((__m256i *)((uint16_t *)out + at), half);
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

#define LANES 16 /* numbers of 32 bits in a register of AVX-512 */

/* N is a multiple of 16. */
void rms_norm(const void *x, const void *weight, void *out, int64_t rows, int64_t width, float eps, int bfloat16,
              int threads) {
    Norm p = {.x = x, .weight = weight, .out = out, .rows = rows, .width = width, .eps = eps, .bfloat16 = bfloat16,
              .bfloat16_weight = bfloat16};
    if (threads > rows) threads = (int)rows;
    if (rows * width < WORTH_SHARING) threads = 1;
    GOMP_parallel(level == WHOLE ? normalise_512 : normalise_256, &p, (unsigned)threads, 0);
}

/* K is a multiple of 16, of 32 for bfloat16. */
void dense_multiply(const float *x, const void *weight, const float *bias, float *out, int64_t rows, int64_t inputs,
                    int64_t outputs, int bfloat16, int threads) {
    Dense p = {.x = x, .weight = weight, .bias = bias, .out = out, .rows = rows, .inputs = inputs, .outputs = outputs,
               .bfloat16 = bfloat16};
    if (inputs * outputs < WORTH_SHARING) threads = 1;
    GOMP_parallel(level == WHOLE ? multiply_dense_512 : multiply_dense_256, &p, (unsigned)threads, 0);
}

/* One run of a row as integers. What holds infinity or not a number gets that as its scale, and so does the result. */
AVX512 static void quantize_group(const Product *p, int64_t row, int64_t group) {
    int64_t groups = p->inputs / p->group, start = row * p->inputs + group * p->group, place = row * groups + group;
    __m512 most = _mm512_setzero_ps();
    __mmask16 finite = 0xffff;
    for (int64_t k = 0; k < p->group; k += LANES) {
        __m512 size = _mm512_abs_ps(loaded(p->x, p->bfloat16, start + k));
        finite &= _mm512_cmp_ps_mask(size, _mm512_set1_ps(FLT_MAX), _CMP_LE_OQ);
        most = _mm512_max_ps(most, size);
    }
    float largest = _mm512_reduce_max_ps(most);
    float scale = largest / LARGEST;
    float inverse = scale >= FLT_MIN ? 1.0f / scale : 0.0f; /* smaller numbers than that are nothing */
    if (finite != 0xffff) inverse = 0.0f, scale = NAN;
    __m512i sum = _mm512_setzero_si512();
    for (int64_t k = 0; k < p->group; k += LANES) {
        __m512 steps = _mm512_mul_ps(loaded(p->x, p->bfloat16, start + k), _mm512_set1_ps(inverse));
        if (finite != 0xffff) steps = _mm512_setzero_ps();
        __m512i whole = _mm512_cvtps_epi32(steps);
        whole = _mm512_min_epi32(whole, _mm512_set1_epi32((int)LARGEST));
        whole = _mm512_max_epi32(whole, _mm512_set1_epi32(-(int)LARGEST));
        __m512i high = _mm512_srai_epi32(_mm512_add_epi32(whole, _mm512_set1_epi32(128)), 8);
        __m512i low = _mm512_sub_epi32(whole, _mm512_slli_epi32(high, 8));
        _mm_storeu_si128((__m128i *)(p->high + start + k), _mm512_cvtepi32_epi8(high));
        _mm_storeu_si128((__m128i *)(p->low + start + k), _mm512_cvtepi32_epi8(low));
        sum = _mm512_add_epi32(sum, whole);
    }
    p->scales[place] = scale;
    p->sums[place] = _mm512_reduce_add_epi32(sum);
}

static inline int32_t four_bytes(const int8_t *from) {
    int32_t bytes;
    memcpy(&bytes, from, sizeof bytes);
    return bytes;
}

/* Adds what one run of columns gives for 64 rows of weights and one row of x, or two: totals[together][64].
 *
 * Two at once unpack the weights once. Each sum is the same either way.
 */
AVX512 static inline __attribute__((always_inline)) void add_group(const Product *p, const uint8_t *packed,
                                                                   const uint32_t *numbers, int64_t row, int together,
                                                                   int64_t group, __m512i first, __m512i second,
                                                                   float *totals) {
    const int64_t groups = p->inputs / p->group, start = row * p->inputs + group * p->group;
    const __m512i half = _mm512_set1_epi8(15);
    __m512i highs[2][VECTORS], lows[2][VECTORS];
    for (int r = 0; r < together; r++)
        for (int v = 0; v < VECTORS; v++) highs[r][v] = lows[r][v] = _mm512_setzero_si512();
    for (int64_t k = 0; k < p->group; k += 4, packed += 128) {
        __m512i a = _mm512_loadu_si512(packed), b = _mm512_loadu_si512(packed + 64);
        /* Of four columns each, so that the four bytes of a row lie together. */
        __m512i left = _mm512_permutex2var_epi8(a, first, b), right = _mm512_permutex2var_epi8(a, second, b);
        __m512i steps[VECTORS] = {
            _mm512_and_si512(left, half),
            _mm512_and_si512(right, half),
            _mm512_and_si512(_mm512_srli_epi16(left, 4), half),
            _mm512_and_si512(_mm512_srli_epi16(right, 4), half),
        };
        for (int r = 0; r < together; r++) {
            int64_t at = start + r * p->inputs + k;
            __m512i x_high = _mm512_set1_epi32(four_bytes(p->high + at));
            __m512i x_low = _mm512_set1_epi32(four_bytes(p->low + at));
            for (int v = 0; v < VECTORS; v++) {
                highs[r][v] = _mm512_dpbusd_epi32(highs[r][v], steps[v], x_high);
                lows[r][v] = _mm512_dpbusd_epi32(lows[r][v], steps[v], x_low);
            }
        }
    }
    for (int r = 0; r < together; r++) {
        int64_t place = (row + r) * groups + group;
        __m512i eight_times = _mm512_set1_epi32(8 * p->sums[place]);
        __m512 sum = _mm512_set1_ps((float)p->sums[place]), x_scale = _mm512_set1_ps(p->scales[place]);
        for (int v = 0; v < VECTORS; v++) {
            __m512i both = _mm512_loadu_si512(numbers + v * LANES);
            __m512 scale = _mm512_castsi512_ps(_mm512_slli_epi32(both, 16));
            __m512 zero = _mm512_castsi512_ps(_mm512_and_si512(both, _mm512_set1_epi32((int)0xffff0000)));
            if (p->symmetric) scale = _mm512_add_ps(scale, zero), zero = _mm512_setzero_ps();
            __m512i whole = _mm512_add_epi32(_mm512_slli_epi32(highs[r][v], 8), lows[r][v]);
            __m512 product = _mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_sub_epi32(whole, eight_times)), scale);
            product = _mm512_fmadd_ps(sum, zero, product);
            float *total = totals + r * BLOCK + v * LANES;
            _mm512_storeu_ps(total, _mm512_fmadd_ps(product, x_scale, _mm512_loadu_ps(total)));
        }
    }
}

/* One thread's share of the rows of x. */
static void quantize(void *data) {
    const Product *p = data;
    int64_t groups = p->rows * (p->inputs / p->group), threads = omp_get_num_threads(), thread = omp_get_thread_num();
    for (int64_t n = groups * thread / threads; n < groups * (thread + 1) / threads; n++)
        quantize_group(p, n / (p->inputs / p->group), n % (p->inputs / p->group));
}

/* One thread's share of the blocks of weights, for rows `from` to `to` of x: as many as fit into totals. */
AVX512 static void multiply_rows(const Product *p, int64_t thread, int64_t threads, int64_t from, int64_t to,
                                 __m512i first, __m512i second) {
    int64_t blocks = p->outputs / BLOCK, groups = p->inputs / p->group;
    float *totals = p->totals + thread * AT_A_TIME * BLOCK;
    for (int64_t block = blocks * thread / threads; block < blocks * (thread + 1) / threads; block++) {
        memset(totals, 0, (size_t)(to - from) * BLOCK * sizeof *totals);
        for (int64_t group = 0; group < groups; group++) {
            const uint8_t *packed = p->packed + (block * p->inputs + group * p->group) * 32;
            const uint32_t *numbers = p->scale_and_zero + group * p->outputs + block * BLOCK;
            int64_t row = from;
            float *total = totals;
            for (; row + 2 <= to; row += 2, total += 2 * BLOCK)
                add_group(p, packed, numbers, row, 2, group, first, second, total);
            if (row < to) add_group(p, packed, numbers, row, 1, group, first, second, total);
        }
        for (int64_t row = from; row < to; row++)
            for (int v = 0; v < VECTORS; v++)
                store(p->out, p->bfloat16, row * p->outputs + block * BLOCK + v * LANES,
                      _mm512_loadu_ps(totals + (row - from) * BLOCK + v * LANES));
    }
}

AVX512 static void multiply(void *data) {
    const Product *p = data;
    uint8_t order[2][64];
    for (int n = 0; n < 64; n++) {
        order[0][n] = (uint8_t)(n / 4 + 32 * (n % 4)); /* byte n: row n / 4 of column n % 4 */
        order[1][n] = (uint8_t)(order[0][n] + 16);
    }
    __m512i first = _mm512_loadu_si512(order[0]), second = _mm512_loadu_si512(order[1]);
    for (int64_t from = 0; from < p->rows; from += AT_A_TIME) {
        int64_t to = from + AT_A_TIME < p->rows ? from + AT_A_TIME : p->rows;
        multiply_rows(p, omp_get_thread_num(), omp_get_num_threads(), from, to, first, second);
    }
}

/* 0, or 1 where there is no memory. K is a multiple of G, G of 16, N of 64. */
int int4_multiply(const void *x, const uint8_t *packed, const uint32_t *scale_and_zero, void *out, int64_t rows,
                  int64_t inputs, int64_t outputs, int64_t group, int symmetric, int bfloat16, int threads) {
    int64_t groups = rows * (inputs / group), integers = rows * inputs;
    int64_t blocks = outputs / BLOCK;
    if (threads > blocks) threads = (int)blocks;
    char *room = malloc((size_t)(groups * 8 + threads * AT_A_TIME * BLOCK * 4 + 2 * integers));
    if (room == NULL) return 1;
    Product p = {.x = x, .packed = packed, .scale_and_zero = scale_and_zero, .out = out, .rows = rows,
                 .inputs = inputs, .outputs = outputs, .group = group, .symmetric = symmetric,
                 .bfloat16 = bfloat16};
    p.scales = (float *)room;
    p.sums = (int32_t *)(p.scales + groups);
    p.totals = (float *)(p.sums + groups);
    p.high = (int8_t *)(p.totals + (int64_t)threads * AT_A_TIME * BLOCK);
    p.low = p.high + integers;
    GOMP_parallel(quantize, &p, rows > 1 ? (unsigned)threads : 1, 0);
    GOMP_parallel(multiply, &p, (unsigned)threads, 0);
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
    longest = (longest + LANES - 1) / LANES * LANES;
    Room room = {.longest = longest};
    float **parts[] = {&room.state, &room.normed, &room.q, &room.k, &room.v, &room.mixed, &room.gate, &room.up,
                       &room.parted, &room.scales, &room.scores, &room.totals};
    int64_t sizes[] = {rows * width, rows * width, rows * queries, rows * keys, rows * keys, rows * queries,
                       rows * inner, rows * inner, rows * widest, rows * widest, threads * longest,
                       threads * AT_A_TIME * BLOCK};
    int64_t floats = 0, integers = rows * widest;
    for (size_t n = 0; n < sizeof sizes / sizeof *sizes; n++) floats += sizes[n];
    float *memory = malloc((size_t)(floats * 4 + integers * 6));
    if (memory == NULL) return 1;
    float *next = memory;
    for (size_t n = 0; n < sizeof sizes / sizeof *sizes; n++) *parts[n] = next, next += sizes[n];
    room.sums = (int32_t *)next;
    room.high = (int8_t *)(room.sums + integers);
    room.low = room.high + integers;
    (level == WHOLE ? layer_512 : layer_256)(l, &room, x, cosines, sines, places, out, rows, threads);
    free(memory);
    return 0;
}
