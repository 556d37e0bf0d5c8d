/* Rows times int4 weights on AVX-512 VNNI and VBMI; cpu.c includes this and says what is computed.
 *
 * An activation's 16-bit integer is split in two signed bytes, x = 256 * high + low, because what these processors
 * multiply quickly is bytes, four at a time (vpdpbusd).
 */
#define LANES 16
#define BLOCK 64 /* rows of weights */
#define VECTORS (BLOCK / LANES)
#define AHEAD 4 /* groups */
#define SOON 512 /* bytes */

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

/* One run of a row as integers. What holds infinity or not a number gets that as its scale, and so does the result. */
AVX512 static void quantize_group_512(const Product *p, int64_t row, int64_t group) {
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

/* sum += x * steps, four bytes each. In assembly, since of the intrinsic GCC 12 copies each sum to another register. */
AVX512 static inline __attribute__((always_inline)) void add_product(__m512i *sum, __m512i steps, __m512i x) {
    __asm__("vpdpbusd %2, %1, %0" : "+v"(*sum) : "v"(steps), "v"(x));
}

/* Adds what one run of columns gives for 64 rows of weights and one row of x, or two: totals[together][64].
 *
 * Two at once unpack the weights once. Each sum is the same either way. Weights are fetched `ahead` bytes further on.
 *
 * A byte is low + 16 * high, and so are the sums: only the upper half is cut out, and both are told apart in the end.
 * With groups of 128 at most they fit into 32 bits.
 */
AVX512 static inline __attribute__((always_inline)) void add_group(const Product *p, const uint8_t *packed,
                                                                   const uint32_t *numbers, int64_t row, int together,
                                                                   int64_t group, int64_t ahead, __m512i first,
                                                                   __m512i second, float *totals) {
    const int64_t groups = p->inputs / p->group, start = row * p->inputs + group * p->group;
    const __m512i upper = _mm512_set1_epi8((char)0xf0);
    __m512i highs[2][VECTORS], lows[2][VECTORS];
    for (int r = 0; r < together; r++)
        for (int v = 0; v < VECTORS; v++) highs[r][v] = lows[r][v] = _mm512_setzero_si512();
    for (int64_t k = 0; k < p->group; k += 4, packed += 128) {
        if (ahead)
            for (int64_t line = 0; line < 128; line += 64) {
                __builtin_prefetch(packed + ahead + line, 0, INTO_L2);
                __builtin_prefetch(packed + SOON + line, 0, INTO_L1);
            }
        __m512i a = _mm512_loadu_si512(packed), b = _mm512_loadu_si512(packed + 64);
        __asm__("" : "+v"(a), "+v"(b)); /* else each is loaded for both permutations */
        /* Of four columns each, so that the four bytes of a row lie together. */
        __m512i left = _mm512_permutex2var_epi8(a, first, b), right = _mm512_permutex2var_epi8(a, second, b);
        __m512i bytes[VECTORS] = {left, right, _mm512_and_si512(left, upper), _mm512_and_si512(right, upper)};
        for (int r = 0; r < together; r++) {
            int64_t at = start + r * p->inputs + k;
            __m512i x_high = _mm512_set1_epi32(four_bytes(p->high + at));
            __m512i x_low = _mm512_set1_epi32(four_bytes(p->low + at));
            for (int v = 0; v < VECTORS; v++) {
                add_product(&highs[r][v], bytes[v], x_high);
                add_product(&lows[r][v], bytes[v], x_low);
            }
        }
    }
    for (int r = 0; r < together; r++) {
        int64_t place = (row + r) * groups + group;
        __m512i eight_times = _mm512_set1_epi32(8 * p->sums[place]);
        __m512 sum = _mm512_set1_ps((float)p->sums[place]), x_scale = _mm512_set1_ps(p->scales[place]);
        __m512i whole[VECTORS];
        for (int v = 0; v < VECTORS; v++) whole[v] = _mm512_add_epi32(_mm512_slli_epi32(highs[r][v], 8), lows[r][v]);
        for (int v = 0; v < VECTORS / 2; v++) {
            whole[v] = _mm512_sub_epi32(whole[v], whole[v + VECTORS / 2]);
            whole[v + VECTORS / 2] = _mm512_srai_epi32(whole[v + VECTORS / 2], 4);
        }
        for (int v = 0; v < VECTORS; v++) {
            __m512i both = _mm512_loadu_si512(numbers + v * LANES);
            __m512 scale = _mm512_castsi512_ps(_mm512_slli_epi32(both, 16));
            __m512 zero = _mm512_castsi512_ps(_mm512_and_si512(both, _mm512_set1_epi32((int)0xffff0000)));
            if (p->symmetric) scale = _mm512_add_ps(scale, zero), zero = _mm512_setzero_ps();
            __m512 product = _mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_sub_epi32(whole[v], eight_times)), scale);
            product = _mm512_fmadd_ps(sum, zero, product);
            float *total = totals + r * BLOCK + v * LANES;
            _mm512_storeu_ps(total, _mm512_fmadd_ps(product, x_scale, _mm512_loadu_ps(total)));
        }
    }
}

/* One thread's share of the rows of x. */
static void quantize_512(void *data) {
    const Product *p = data;
    int64_t groups = p->rows * (p->inputs / p->group), threads = omp_get_num_threads(), thread = omp_get_thread_num();
    for (int64_t n = groups * thread / threads; n < groups * (thread + 1) / threads; n++)
        quantize_group_512(p, n / (p->inputs / p->group), n % (p->inputs / p->group));
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
            /* These lie far apart, where the processor expects none. */
            int64_t later = group + AHEAD < groups ? AHEAD * p->outputs : (AHEAD - groups) * p->outputs + BLOCK;
            for (int64_t n = 0; n < BLOCK; n += 16) __builtin_prefetch(numbers + later + n, 0, INTO_L2);
            int64_t row = from, ahead = PAGE; /* at whose end the processor itself stops */
            float *total = totals;
            for (; row + 2 <= to; row += 2, total += 2 * BLOCK, ahead = 0)
                add_group(p, packed, numbers, row, 2, group, ahead, first, second, total);
            if (row < to) add_group(p, packed, numbers, row, 1, group, ahead, first, second, total);
        }
        for (int64_t row = from; row < to; row++)
            for (int v = 0; v < VECTORS; v++)
                store(p->out, p->bfloat16, row * p->outputs + block * BLOCK + v * LANES,
                      _mm512_loadu_ps(totals + (row - from) * BLOCK + v * LANES));
    }
}

AVX512 static void multiply_int4_512(void *data) {
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

#undef LANES
#undef BLOCK
#undef VECTORS
#undef AHEAD
#undef SOON
