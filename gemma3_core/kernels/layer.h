/* A decoder layer for one new token of each row, for registers of any width; rows.h includes this. Everything between
 * x and the result is in float32. K and N of all weights are multiples of 32, D too.
 */
typedef struct {
    const Layer *layer;
    const Place *places;
    const float *queries; /* [M, H, D] */
    float *out;           /* [M, H, D] */
    float *scores;        /* [threads, longest] */
    int64_t rows, longest;
} NAMED(Attending);

typedef struct {
    int count;
    int int4[TOGETHER];
    Product products[TOGETHER];
    Dense denses[TOGETHER];
} NAMED(Together);

/* In place, to the last bit or two; below -87 it is nearly nothing instead of nothing. */
INLINE void NAMED(exponential)(Floats *value) {
    const Floats least = (Floats){0} - 87.0f, most = (Floats){0} + 88.0f;
    Words low = (Words)(*value < least), high = (Words)(*value > most);
    Floats x = (Floats)(((Words)*value & ~low & ~high) | ((Words)least & low) | ((Words)most & high));
    Floats shifted = x * 1.44269504f + 12582912.0f; /* the nearest integer in its lowest bits */
    Floats whole = shifted - 12582912.0f;
    x = x - whole * 0.693359375f + whole * 2.12194440e-4f; /* ln 2 in two parts */
    Floats sum = x * 1.9875691500e-4f + 1.3981999507e-3f;
    sum = sum * x + 8.3334519073e-3f;
    sum = sum * x + 4.1665795894e-2f;
    sum = sum * x + 1.6666665459e-1f;
    sum = sum * x + 5.0000001201e-1f;
    *value = (sum * x * x + x + 1.0f) * (Floats)(((Words)shifted << 23) + 0x3f800000);
}

/* One thread's share of the heads of all rows. */
TARGET static void NAMED(attend)(void *data) {
    const NAMED(Attending) *p = data;
    const Layer *l = p->layer;
    const int64_t width = l->head_dim, items = p->rows * l->heads;
    int64_t threads = omp_get_num_threads(), thread = omp_get_thread_num();
    float *scores = p->scores + thread * p->longest;
    for (int64_t item = items * thread / threads; item < items * (thread + 1) / threads; item++) {
        const Place *place = p->places + item / l->heads;
        const float *query = p->queries + item * width;
        float *out = p->out + item * width, most = -INFINITY;
        int64_t first = item % l->heads / (l->heads / l->kv_heads) * place->head_stride, seen = place->seen, s = 0;
        Floats value, total = {0};
        for (; s < seen; s++) {
            Floats sums[2] = {{0}, {0}};
            for (int64_t d = 0; d < width; d += LANES) {
                NAMED(load)(&value, place->keys, l->bfloat16, first + s * width + d);
                sums[d / LANES % 2] = FUSED(value, *(const Floats *)(query + d), sums[d / LANES % 2]);
            }
            scores[s] = TOTAL(sums[0] + sums[1]) * l->scale;
            if (scores[s] > most) most = scores[s];
        }
        for (; s % LANES; s++) scores[s] = most - 100.0f;
        for (s = 0; s < seen; s += LANES) {
            value = *(Floats *)(scores + s) - most;
            NAMED(exponential)(&value);
            total += value;
            *(Floats *)(scores + s) = value;
        }
        float factor = 1.0f / TOTAL(total);
        for (int64_t d = 0; d < width; d += 2 * LANES) {
            Floats sums[2] = {{0}, {0}};
            for (s = 0; s < seen; s++)
                for (int half = 0; half < 2; half++) {
                    NAMED(load)(&value, place->values, l->bfloat16, first + s * width + d + half * LANES);
                    sums[half] += value * scores[s];
                }
            *(Floats *)(out + d) = sums[0] * factor;
            *(Floats *)(out + d + LANES) = sums[1] * factor;
        }
    }
}

/* tanh-GELU of a times b, in a: x * (1 + tanh(u)) / 2 is x / (1 + exp(-2 u)). */
TARGET static void NAMED(gelu_multiply)(float *a, const float *b, int64_t numbers) {
    for (int64_t n = 0; n < numbers; n += LANES) {
        Floats x = *(Floats *)(a + n);
        Floats power = (x + x * x * x * 0.044715f) * -1.5957691216f; /* -2 sqrt(2 / pi) */
        NAMED(exponential)(&power);
        *(Floats *)(a + n) = x / (power + 1.0f) * *(const Floats *)(b + n);
    }
}

TARGET static void NAMED(norm)(const Layer *l, const float *x, const void *weight, float *out, int64_t rows,
                               int64_t width) {
    Norm p = {.x = x, .weight = weight, .out = out, .rows = rows, .width = width, .eps = l->eps,
              .bfloat16_weight = l->bfloat16};
    NAMED(normalise)(&p);
}

TARGET static void NAMED(multiply_together)(void *data) {
    NAMED(Together) *p = data;
    for (int i = 0; i < p->count; i++)
        if (p->int4[i])
            NAMED(multiply_int4)(&p->products[i]);
        else
            NAMED(multiply_dense)(&p->denses[i]);
}

/* One x [M, K] times each of `count` weights. */
TARGET static void NAMED(project)(const Room *room, const float *x, int64_t rows, int bfloat16, int count,
                                  const Weight *const weights[], float *const outs[], int threads) {
    NAMED(Together) p = {.count = count};
    int64_t work = 0, inputs = weights[0]->inputs;
    int quantized = 0, parted = 0;
    for (int i = 0; i < count; i++) {
        const Weight *w = weights[i];
        work += inputs * w->outputs;
        p.int4[i] = w->group != 0;
        if (w->group) {
            p.products[i] = (Product){.x = x, .packed = w->weight, .scale_and_zero = w->scale_and_zero,
                                      .symmetric = (int)w->symmetric, .out = outs[i], .rows = rows, .inputs = inputs,
                                      .outputs = w->outputs, .group = w->group, .block = w->block, .high = room->high,
                                      .low = room->low,
                                      .scales = room->scales, .sums = room->sums, .totals = room->totals};
            if (!quantized) NAMED(quantize)(&p.products[i]);
            quantized = 1;
            continue;
        }
        if (bfloat16 && !parted)
            for (int64_t n = 0; n < rows * inputs; n++)
                room->parted[n / inputs * inputs + n % inputs / 2 + n % 2 * (inputs / 2)] = x[n];
        parted = 1;
        p.denses[i] = (Dense){.x = bfloat16 ? room->parted : x, .weight = w->weight, .out = outs[i], .rows = rows,
                              .inputs = inputs, .outputs = w->outputs, .bfloat16 = bfloat16};
    }
    GOMP_parallel(NAMED(multiply_together), &p, work < WORTH_SHARING ? 1 : (unsigned)threads, 0);
}

/* Rotates heads [M, H, D] in place by cosines and sines [M, D]; pairs element d with d + D/2. */
TARGET static void NAMED(rotate)(float *heads, const void *cosines, const void *sines, int64_t rows, int64_t count,
                                 int64_t width, int bfloat16) {
    Floats cosine[2], sine[2];
    for (int64_t n = 0; n < rows * count; n++)
        for (int64_t d = 0; d < width / 2; d += LANES) {
            int64_t at = n / count * width + d;
            Floats *first = (Floats *)(heads + n * width + d), *second = (Floats *)(heads + n * width + d + width / 2);
            for (int half = 0; half < 2; half++) {
                NAMED(load)(&cosine[half], cosines, bfloat16, at + half * width / 2);
                NAMED(load)(&sine[half], sines, bfloat16, at + half * width / 2);
            }
            Floats turned = *first * cosine[0] - *second * sine[0];
            *second = *second * cosine[1] + *first * sine[1];
            *first = turned;
        }
}

/* Writes the new keys or values [M, KV heads, D] to the cache. */
TARGET static void NAMED(keep)(const Layer *l, const Place *places, const float *heads, int64_t rows, int are_values) {
    for (int64_t n = 0; n < rows * l->kv_heads; n++) {
        const Place *place = places + n / l->kv_heads;
        int64_t at = n % l->kv_heads * place->head_stride + place->column * l->head_dim;
        for (int64_t d = 0; d < l->head_dim; d += LANES)
            NAMED(save)((const Floats *)(heads + n * l->head_dim + d), are_values ? place->values : place->keys,
                        l->bfloat16, at + d);
    }
}

TARGET static void NAMED(layer)(const Layer *l, const Room *room, const void *x, const void *cosines, const void *sines,
                                const Place *places, void *out, int64_t rows, int threads) {
    const int64_t width = l->q.inputs, inner = l->gate.outputs, queries = l->q.outputs;
    float *state = room->state, *normed = room->normed, *q = room->q, *k = room->k, *v = room->v, *mixed = room->mixed;
    float *gate = room->gate, *up = room->up;
    NAMED(Attending) attending = {.layer = l, .places = places, .queries = q, .out = mixed, .scores = room->scores,
                                  .rows = rows, .longest = room->longest};
    for (int64_t n = 0; n < rows * width; n += LANES) NAMED(load)((Floats *)(state + n), x, l->bfloat16, n);

    NAMED(norm)(l, state, l->input_norm, normed, rows, width);
    NAMED(project)(room, normed, rows, l->bfloat16, 3, (const Weight *[]){&l->q, &l->k, &l->v}, (float *[]){q, k, v},
                   threads);
    NAMED(norm)(l, q, l->query_norm, q, rows * l->heads, l->head_dim);
    NAMED(norm)(l, k, l->key_norm, k, rows * l->kv_heads, l->head_dim);
    NAMED(rotate)(q, cosines, sines, rows, l->heads, l->head_dim, l->bfloat16);
    NAMED(rotate)(k, cosines, sines, rows, l->kv_heads, l->head_dim, l->bfloat16);
    NAMED(keep)(l, places, k, rows, 0);
    NAMED(keep)(l, places, v, rows, 1);
    int worth = rows * queries * room->longest >= WORTH_SHARING;
    GOMP_parallel(NAMED(attend), &attending, worth ? (unsigned)threads : 1, 0);
    NAMED(project)(room, mixed, rows, l->bfloat16, 1, (const Weight *[]){&l->o}, (float *[]){normed}, threads);
    NAMED(norm)(l, normed, l->after_attention_norm, normed, rows, width);
    for (int64_t n = 0; n < rows * width; n++) state[n] += normed[n];

    NAMED(norm)(l, state, l->before_mlp_norm, normed, rows, width);
    NAMED(project)(room, normed, rows, l->bfloat16, 2, (const Weight *[]){&l->gate, &l->up}, (float *[]){gate, up},
                   threads);
    NAMED(gelu_multiply)(gate, up, rows * inner);
    NAMED(project)(room, gate, rows, l->bfloat16, 1, (const Weight *[]){&l->down}, (float *[]){normed}, threads);
    NAMED(norm)(l, normed, l->after_mlp_norm, normed, rows, width);
    for (int64_t n = 0; n < rows * width; n += LANES) {
        Floats sum = *(const Floats *)(state + n) + *(const Floats *)(normed + n);
        NAMED(save)(&sum, out, l->bfloat16, n);
    }
}
