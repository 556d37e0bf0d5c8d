/* RMSNorm, products with a few rows, and a decoder layer of these, for registers of any width. cpu.c includes this once for each: it defines
 * TARGET (what the processor must have), LANES (floats in a register), TALL (rows of x at a time), NAMED(name),
 * TOTAL(floats), FUSED(a, b, c), which is a * b + c rounded once, and WIDENED(from), so many numbers in bfloat16 as floats.
 */
typedef float NAMED(Floats) __attribute__((vector_size(4 * LANES), aligned(4)));
typedef uint32_t NAMED(Words) __attribute__((vector_size(4 * LANES), aligned(2)));
typedef uint16_t NAMED(Halves) __attribute__((vector_size(2 * LANES), aligned(2)));
#define Floats NAMED(Floats)
#define Words NAMED(Words)
#define Halves NAMED(Halves)
#define INLINE TARGET static inline __attribute__((always_inline))

INLINE void NAMED(load)(Floats *value, const void *from, int bfloat16, int64_t at) {
    if (bfloat16)
        *value = WIDENED((const uint16_t *)from + at);
    else
        *value = *(const Floats *)((const float *)from + at);
}

/* Rounds to the nearest, ties to even, as torch does; not a number stays one. */
INLINE void NAMED(save)(const Floats *value, void *to, int bfloat16, int64_t at) {
    if (!bfloat16) {
        *(Floats *)((float *)to + at) = *value;
        return;
    }
    Words bits = (Words)*value, nan = (Words)(*value != *value);
    bits += 0x7fff + ((bits >> 16) & 1);
    bits = (bits & ~nan) | (nan & 0x7fc00000);
    *(Halves *)((uint16_t *)to + at) = __builtin_convertvector(bits >> 16, Halves);
}

/* One thread's share of the rows. */
TARGET static void NAMED(normalise)(void *data) {
    const Norm *p = data;
    int64_t threads = omp_get_num_threads(), thread = omp_get_thread_num();
    for (int64_t row = p->rows * thread / threads; row < p->rows * (thread + 1) / threads; row++) {
        int64_t start = row * p->width;
        Floats squares = {0}, value, weight;
        for (int64_t n = 0; n < p->width; n += LANES) {
            NAMED(load)(&value, p->x, p->bfloat16, start + n);
            squares += value * value;
        }
        float factor = 1.0f / sqrtf(TOTAL(squares) / (float)p->width + p->eps);
        for (int64_t n = 0; n < p->width; n += LANES) {
            NAMED(load)(&value, p->x, p->bfloat16, start + n);
            NAMED(load)(&weight, p->weight, p->bfloat16_weight, n);
            value = value * factor * (weight + 1.0f);
            NAMED(save)(&value, p->out, p->bfloat16, start + n);
        }
    }
}

/* `wide` rows of weights from n on times `tall` rows of x from m on. Each sum is the same in any company. */
INLINE void NAMED(multiply_tile)(const Dense *p, int64_t n, int wide, int64_t m, int tall, int bfloat16) {
    const int64_t bytes = p->inputs * (bfloat16 ? 2 : 4), half = p->inputs / 2;
    const char *rows = (const char *)p->weight + n * bytes;
    Floats sums[4][TALL];
    Words words[4];
    for (int i = 0; i < wide; i++)
        for (int j = 0; j < tall; j++) sums[i][j] = (Floats){0};
    for (int64_t at = 0; at < bytes; at += 4 * LANES) {
        for (int i = 0; i < wide; i++) {
            words[i] = *(const Words *)(rows + i * bytes + at);
            /* The next tile, row after row: memory gives a single stream fastest. One row comes from the page after
             * this one, at whose end the processor itself stops. */
            if (wide > 1)
                __builtin_prefetch(rows + wide * (bytes + at) + i * 4 * LANES);
            else
                __builtin_prefetch(rows + at + PAGE, 0, INTO_L2);
        }
        for (int j = 0; j < tall; j++) {
            const float *x = p->x + (m + j) * p->inputs + at / 4;
            Floats first = *(const Floats *)x;
            if (!bfloat16) {
                for (int i = 0; i < wide; i++) sums[i][j] = FUSED((Floats)words[i], first, sums[i][j]);
                continue;
            }
            Floats second = *(const Floats *)(x + half);
            for (int i = 0; i < wide; i++) {
                sums[i][j] = FUSED((Floats)(words[i] << 16), first, sums[i][j]);
                sums[i][j] = FUSED((Floats)(words[i] & 0xffff0000), second, sums[i][j]);
            }
        }
    }
    for (int i = 0; i < wide; i++)
        for (int j = 0; j < tall; j++) {
            float bias = p->bias == NULL ? 0.0f : p->bias[n + i];
            p->out[(m + j) * p->outputs + n + i] = TOTAL(sums[i][j]) + bias;
        }
}

INLINE void NAMED(multiply_share)(const Dense *p, int64_t from, int64_t to, int bfloat16) {
    int64_t n = from;
    for (; p->rows > 2 && n + 4 <= to; n += 4) {
        int64_t m = 0;
        for (; m + TALL <= p->rows; m += TALL) NAMED(multiply_tile)(p, n, 4, m, TALL, bfloat16);
        for (; m + 2 <= p->rows; m += 2) NAMED(multiply_tile)(p, n, 4, m, 2, bfloat16);
        for (; m < p->rows; m++) NAMED(multiply_tile)(p, n, 4, m, 1, bfloat16);
    }
    for (; n < to; n++) {
        int64_t m = 0;
        for (; m + 2 <= p->rows; m += 2) NAMED(multiply_tile)(p, n, 1, m, 2, bfloat16);
        for (; m < p->rows; m++) NAMED(multiply_tile)(p, n, 1, m, 1, bfloat16);
    }
}

/* One thread's share of the rows of weights. */
TARGET static void NAMED(multiply_dense)(void *data) {
    const Dense *p = data;
    int64_t threads = omp_get_num_threads(), thread = omp_get_thread_num();
    int64_t from = p->outputs * thread / threads, to = p->outputs * (thread + 1) / threads;
    if (p->bfloat16)
        NAMED(multiply_share)(p, from, to, 1);
    else
        NAMED(multiply_share)(p, from, to, 0);
}

#include "layer.h"

#undef INLINE
#undef Halves
#undef Words
#undef Floats
#undef TARGET
#undef LANES
#undef TALL
#undef NAMED
#undef TOTAL
#undef FUSED
#undef WIDENED
