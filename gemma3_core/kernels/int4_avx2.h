/* Rows times int4 weights on AVX2; cpu.c includes this and says what is computed.
 *
 * Work goes by strips of a block: 16 bytes of each column, whose lower halves are 16 rows of weights and whose upper
 * halves are 16 others. A strip has four vectors of eight rows.
 *
 * One row of x is multiplied as bytes, x = 256 * high + low (vpmaddubsw): weights need little unpacking for that. For
 * several rows they are unpacked to 16-bit integers once, and multiplied by such (vpmaddwd). The sums are exact, and so
 * the same both ways.
 */
#define LANES 8
#define STRIP 16
#define VECTORS 4
#define TALL 4 /* rows of x at a time */
#define COLUMNS_OF_BYTES 32 /* whose products sum to 16 bits: 16 in each half of a register, 16 * 15 * 128 */
#define WIDEST_GROUP 128 /* unpacked weights of a group stay in the fastest cache */
#define AHEAD 8 /* groups */
#define ALWAYS AVX2 static inline __attribute__((always_inline))

/* One run of a row as integers. What holds infinity or not a number gets that as its scale, and so does the result. */
AVX2 static void quantize_group_256(const Product *p, int64_t row, int64_t group) {
    int64_t groups = p->inputs / p->group, start = row * p->inputs + group * p->group, place = row * groups + group;
    const __m256 sign = _mm256_set1_ps(-0.0f);
    __m256 most = _mm256_setzero_ps(), finite = _mm256_cmp_ps(most, most, _CMP_EQ_OQ), value;
    for (int64_t k = 0; k < p->group; k += LANES) {
        load_256((Floats_256 *)&value, p->x, p->bfloat16, start + k);
        value = _mm256_andnot_ps(sign, value);
        finite = _mm256_and_ps(finite, _mm256_cmp_ps(value, _mm256_set1_ps(FLT_MAX), _CMP_LE_OQ));
        most = _mm256_max_ps(most, value);
    }
    __m128 half = _mm_max_ps(_mm256_castps256_ps128(most), _mm256_extractf128_ps(most, 1));
    half = _mm_max_ps(half, _mm_movehl_ps(half, half));
    float scale = _mm_cvtss_f32(_mm_max_ss(half, _mm_movehdup_ps(half))) / LARGEST;
    float inverse = scale >= FLT_MIN ? 1.0f / scale : 0.0f; /* smaller numbers than that are nothing */
    int all_finite = _mm256_movemask_ps(finite) == 0xff;
    if (!all_finite) inverse = 0.0f, scale = NAN;
    __m256i sum = _mm256_setzero_si256(), whole[2];
    for (int64_t k = 0; k < p->group; k += 2 * LANES) {
        for (int i = 0; i < 2; i++) {
            load_256((Floats_256 *)&value, p->x, p->bfloat16, start + k + i * LANES);
            value = all_finite ? _mm256_mul_ps(value, _mm256_set1_ps(inverse)) : _mm256_setzero_ps();
            whole[i] = _mm256_min_epi32(_mm256_cvtps_epi32(value), _mm256_set1_epi32((int)LARGEST));
            whole[i] = _mm256_max_epi32(whole[i], _mm256_set1_epi32(-(int)LARGEST));
            sum = _mm256_add_epi32(sum, whole[i]);
        }
        __m256i in_order = _mm256_permute4x64_epi64(_mm256_packs_epi32(whole[0], whole[1]), 0xd8);
        if (p->rows > 1) {
            _mm256_storeu_si256((__m256i *)((int16_t *)p->high + start + k), in_order);
            continue;
        }
        __m256i high = _mm256_srai_epi16(_mm256_add_epi16(in_order, _mm256_set1_epi16(128)), 8);
        __m256i low = _mm256_sub_epi16(in_order, _mm256_slli_epi16(high, 8));
        __m256i bytes = _mm256_permute4x64_epi64(_mm256_packs_epi16(high, low), 0xd8);
        _mm_storeu_si128((__m128i *)(p->high + start + k), _mm256_castsi256_si128(bytes));
        _mm_storeu_si128((__m128i *)(p->low + start + k), _mm256_extracti128_si256(bytes, 1));
    }
    __m128i sums = _mm_add_epi32(_mm256_castsi256_si128(sum), _mm256_extracti128_si256(sum, 1));
    sums = _mm_add_epi32(sums, _mm_shuffle_epi32(sums, 0x4e));
    p->scales[place] = scale;
    p->sums[place] = _mm_cvtsi128_si32(_mm_add_epi32(sums, _mm_shuffle_epi32(sums, 0xb1)));
}

/* One thread's share of the rows of x. */
AVX2 static void quantize_256(void *data) {
    const Product *p = data;
    int64_t groups = p->rows * (p->inputs / p->group), threads = omp_get_num_threads(), thread = omp_get_thread_num();
    for (int64_t n = groups * thread / threads; n < groups * (thread + 1) / threads; n++)
        quantize_group_256(p, n / (p->inputs / p->group), n % (p->inputs / p->group));
}

/* Four columns of a strip, `column` bytes apart: rows 0 to 7, then 8 to 15, of columns 0 and 2 in one half of a
 * register, of 1 and 3 in the other, each two bytes of a row together. */
ALWAYS void interleave(const uint8_t *packed, int64_t column, __m256i both[2]) {
    __m256i a = _mm256_loadu2_m128i((const __m128i *)(packed + column), (const __m128i *)packed);
    __m256i b = _mm256_loadu2_m128i((const __m128i *)(packed + 3 * column), (const __m128i *)(packed + 2 * column));
    if (column == STRIP) { /* the same, as one load each */
        a = _mm256_loadu_si256((const __m256i *)packed);
        b = _mm256_loadu_si256((const __m256i *)(packed + 2 * STRIP));
    }
    both[0] = _mm256_unpacklo_epi8(a, b);
    both[1] = _mm256_unpackhi_epi8(a, b);
}

/* Four columns of a strip, `column` bytes apart, as 16-bit integers: of the first two columns, then of the others, the
 * four vectors of a strip, in which the two columns of a row lie together. */
ALWAYS void unpack(const uint8_t *packed, int64_t column, __m256i steps[2 * VECTORS]) {
    const __m256i low = _mm256_set1_epi16(15);
    const __m256i order = _mm256_setr_epi8(0, 1, 8, 9, 2, 3, 10, 11, 4, 5, 12, 13, 6, 7, 14, 15, /* twice */
                                           0, 1, 8, 9, 2, 3, 10, 11, 4, 5, 12, 13, 6, 7, 14, 15);
    __m256i both[2];
    interleave(packed, column, both);
    for (int v = 0; v < 2; v++) {
        __m256i four = _mm256_shuffle_epi8(_mm256_permute4x64_epi64(both[v], 0xd8), order);
        steps[v] = _mm256_and_si256(four, low);
        steps[2 + v] = _mm256_and_si256(_mm256_srli_epi16(four, 4), low);
        steps[4 + v] = _mm256_and_si256(_mm256_srli_epi16(four, 8), low);
        steps[6 + v] = _mm256_srli_epi16(four, 12);
    }
}

/* Two activations, again and again. */
ALWAYS __m256i pair(const int16_t *x) {
    int32_t both;
    memcpy(&both, x, sizeof both);
    return _mm256_set1_epi32(both);
}

/* Scale and zero of eight rows of weights. */
ALWAYS void unpack_numbers(const Product *p, const uint32_t *numbers, __m256 *scale, __m256 *zero) {
    __m256i both = _mm256_loadu_si256((const __m256i *)numbers);
    *scale = _mm256_castsi256_ps(_mm256_slli_epi32(both, 16));
    *zero = _mm256_castsi256_ps(_mm256_and_si256(both, _mm256_set1_epi32((int)0xffff0000)));
    if (p->symmetric) *scale = _mm256_add_ps(*scale, *zero), *zero = _mm256_setzero_ps();
}

/* Scales the sums of integers of eight rows of weights and a row of x, and adds them to its total. */
ALWAYS void add_scaled(const Product *p, __m256i whole, __m256 scale, __m256 zero, int64_t place, float *total) {
    __m256i centred = _mm256_sub_epi32(whole, _mm256_set1_epi32(8 * p->sums[place]));
    __m256 product = _mm256_mul_ps(_mm256_cvtepi32_ps(centred), scale);
    product = _mm256_fmadd_ps(_mm256_set1_ps((float)p->sums[place]), zero, product);
    _mm256_storeu_ps(total, _mm256_fmadd_ps(product, _mm256_set1_ps(p->scales[place]), _mm256_loadu_ps(total)));
}

/* Where in its block a vector of a strip begins. */
ALWAYS int64_t place_of(int v, int64_t column) { return v % 2 * LANES + v / 2 * column; }

/* Adds what a group of columns gives for a strip of weights and the only row of x. */
ALWAYS void add_strip_to_one(const Product *p, const uint8_t *packed, int64_t column, const uint32_t *numbers,
                             int64_t place, float *total) {
    const int8_t *high = p->high + place * p->group, *low = p->low + place * p->group;
    const __m256i half = _mm256_set1_epi8(15), ones_and_256 = _mm256_set1_epi32(1 | 256 << 16);
    const __m256i order = _mm256_setr_epi8(0, 2, 0, 2, 0, 2, 0, 2, 0, 2, 0, 2, 0, 2, 0, 2, /* of four columns */
                                           1, 3, 1, 3, 1, 3, 1, 3, 1, 3, 1, 3, 1, 3, 1, 3);
    __m256i sums[VECTORS], both[2];
    for (int v = 0; v < VECTORS; v++) sums[v] = _mm256_setzero_si256();
    for (int64_t from = 0, to; from < p->group; from = to) {
        to = from + COLUMNS_OF_BYTES < p->group ? from + COLUMNS_OF_BYTES : p->group;
        __m256i highs[VECTORS], lows[VECTORS];
        for (int v = 0; v < VECTORS; v++) highs[v] = lows[v] = _mm256_setzero_si256();
        for (int64_t k = from; k < to; k += 4) {
            __m256i x_high = _mm256_shuffle_epi8(_mm256_set1_epi32(four_bytes(high + k)), order);
            __m256i x_low = _mm256_shuffle_epi8(_mm256_set1_epi32(four_bytes(low + k)), order);
            interleave(packed + k * column, column, both);
            for (int v = 0; v < VECTORS; v++) {
                __m256i steps = v < 2 ? both[v] : _mm256_srli_epi16(both[v - 2], 4);
                steps = _mm256_and_si256(steps, half);
                highs[v] = _mm256_add_epi16(highs[v], _mm256_maddubs_epi16(steps, x_high));
                lows[v] = _mm256_add_epi16(lows[v], _mm256_maddubs_epi16(steps, x_low));
            }
        }
        for (int v = 0; v < VECTORS; v++) { /* low + 256 * high, of four rows and of the next four; then both halves */
            __m256i first = _mm256_madd_epi16(_mm256_unpacklo_epi16(lows[v], highs[v]), ones_and_256);
            __m256i second = _mm256_madd_epi16(_mm256_unpackhi_epi16(lows[v], highs[v]), ones_and_256);
            sums[v] = _mm256_add_epi32(sums[v], _mm256_permute2x128_si256(first, second, 0x20));
            sums[v] = _mm256_add_epi32(sums[v], _mm256_permute2x128_si256(first, second, 0x31));
        }
    }
    for (int v = 0; v < VECTORS; v++) {
        __m256 scale, zero;
        unpack_numbers(p, numbers + place_of(v, column), &scale, &zero);
        add_scaled(p, sums[v], scale, zero, place, total + place_of(v, column));
    }
}

/* The same for `tall` rows of x and a strip that is unpacked, [G / 2, VECTORS]. */
ALWAYS void add_strip_to_some(const Product *p, const __m256i *steps, int64_t column, const __m256 *scale,
                              const __m256 *zero, int64_t row, int tall, int64_t group, float *totals) {
    const int64_t inputs = p->inputs, groups = inputs / p->group;
    const int16_t *x = (const int16_t *)p->high + row * inputs + group * p->group;
    for (int v = 0; v < VECTORS; v += 2) {
        __m256i sums[TALL][2];
        for (int r = 0; r < tall; r++) sums[r][0] = sums[r][1] = _mm256_setzero_si256();
        const __m256i *of = steps + v;
        for (const int16_t *next = x, *end = x + p->group; next < end; next += 2, of += VECTORS)
            for (int r = 0; r < tall; r++) {
                __m256i both = pair(next + r * inputs);
                for (int i = 0; i < 2; i++) sums[r][i] = _mm256_add_epi32(sums[r][i], _mm256_madd_epi16(of[i], both));
            }
        for (int r = 0; r < tall; r++)
            for (int i = 0; i < 2; i++) {
                float *total = totals + r * p->block + place_of(v + i, column);
                add_scaled(p, sums[r][i], scale[v + i], zero[v + i], (row + r) * groups + group, total);
            }
    }
}

ALWAYS void add_strip(const Product *p, const uint8_t *packed, int64_t column, const uint32_t *numbers, int64_t from,
                      int64_t to, int64_t group, float *totals) {
    if (p->rows == 1) {
        add_strip_to_one(p, packed, column, numbers, from * (p->inputs / p->group) + group, totals);
        return;
    }
    __m256i steps[WIDEST_GROUP / 2 * VECTORS];
    __m256 scale[VECTORS], zero[VECTORS];
    for (int v = 0; v < VECTORS; v++) unpack_numbers(p, numbers + place_of(v, column), &scale[v], &zero[v]);
    for (int64_t k = 0; k < p->group; k += 4) unpack(packed + k * column, column, steps + k / 2 * VECTORS);
    int64_t row = from;
    for (; row + TALL <= to; row += TALL, totals += TALL * p->block)
        add_strip_to_some(p, steps, column, scale, zero, row, TALL, group, totals);
    for (; row + 2 <= to; row += 2, totals += 2 * p->block)
        add_strip_to_some(p, steps, column, scale, zero, row, 2, group, totals);
    if (row < to) add_strip_to_some(p, steps, column, scale, zero, row, 1, group, totals);
}

/* One thread's share of the blocks of weights, for rows `from` to `to` of x: as many as fit into totals. */
ALWAYS void multiply_rows_256(const Product *p, int64_t column, int64_t from, int64_t to) {
    int64_t threads = omp_get_num_threads(), thread = omp_get_thread_num();
    int64_t blocks = p->outputs / p->block, groups = p->inputs / p->group;
    float *totals = p->totals + thread * AT_A_TIME * LARGEST_BLOCK;
    for (int64_t block = blocks * thread / threads; block < blocks * (thread + 1) / threads; block++) {
        memset(totals, 0, (size_t)((to - from) * p->block) * sizeof *totals);
        for (int64_t group = 0; group < groups; group++) {
            const uint8_t *packed = p->packed + (block * p->inputs + group * p->group) * column;
            const uint32_t *numbers = p->scale_and_zero + group * p->outputs + block * p->block;
            /* These lie far apart, where the processor expects none. */
            int64_t later = group + AHEAD < groups ? AHEAD * p->outputs : (AHEAD - groups) * p->outputs + p->block;
            for (int64_t n = 0; n < p->block; n += 16) __builtin_prefetch(numbers + later + n);
            for (int64_t n = 0; n < p->group * column; n += 64) /* the processor itself stops at the end of a page */
                __builtin_prefetch(packed + AHEAD * p->group * column + n);
            for (int64_t strip = 0; strip < column; strip += STRIP)
                add_strip(p, packed + strip, column, numbers + strip, from, to, group, totals + strip);
        }
        for (int64_t row = from; row < to; row++)
            for (int64_t n = 0; n < p->block; n += LANES)
                save_256((const Floats_256 *)(totals + (row - from) * p->block + n), p->out, p->bfloat16,
                         row * p->outputs + block * p->block + n);
    }
}

AVX2 static void multiply_int4_256(void *data) {
    const Product *p = data;
    for (int64_t from = 0; from < p->rows; from += AT_A_TIME) {
        int64_t to = from + AT_A_TIME < p->rows ? from + AT_A_TIME : p->rows;
        if (p->block == 64)
            multiply_rows_256(p, 32, from, to);
        else
            multiply_rows_256(p, 16, from, to);
    }
}

#undef LANES
#undef STRIP
#undef VECTORS
#undef TALL
#undef COLUMNS_OF_BYTES
#undef WIDEST_GROUP
#undef AHEAD
#undef ALWAYS
