/*
 * Choosing a token: temperature -> top_k -> top_p -> min_p -> one draw. Random numbers are xoshiro256++, seeded by splitmix64.
 * Tokens with less than e^-25 of the likeliest's probability, and those that stand for no text, are never drawn.
 */
static uint64_t rotl(uint64_t x, int n) { return x << n | x >> (64 - n); }

static double uniform(Story *s) {
    uint64_t *r = s->rng, result = rotl(r[0] + r[3], 23) + r[0], t = r[1] << 17;
    r[2] ^= r[0];
    r[3] ^= r[1];
    r[1] ^= r[2];
    r[0] ^= r[3];
    r[2] ^= t;
    r[3] = rotl(r[3], 45);
    return (double)(result >> 11) * 0x1p-53;
}

STORY_API void story_reset(Story *s, uint64_t seed) {
    for (int i = 0; i < 4; i++) {
        seed += 0x9e3779b97f4a7c15u;
        uint64_t z = (seed ^ seed >> 30) * 0xbf58476d1ce4e5b9u;
        z = (z ^ z >> 27) * 0x94d049bb133111ebu;
        s->rng[i] = z ^ z >> 31;
    }
    if (s->states) memset(s->states, 0, 4 * s->state_len);
    s->past = s->held = s->last = 0;
    feed(s, s->eos);
}

/* Whether token a goes before b: heavier first, then the lower id. */
static int heavier(const Story *s, uint32_t a, uint32_t b) {
    return s->weights[a] > s->weights[b] || (s->weights[a] == s->weights[b] && a < b);
}

static void sift(Story *s, size_t at, size_t n) {
    uint16_t *heap = s->order, own = heap[at];
    for (size_t child; (child = 2 * at + 1) < n; at = child) {
        if (child + 1 < n && heavier(s, heap[child + 1], heap[child])) child++;
        if (!heavier(s, heap[child], own)) break;
        heap[at] = heap[child];
    }
    heap[at] = own;
}

/* Sorts the candidates until `most` are sorted or they weigh `enough`; they are then the first ones. Returns their number. */
static size_t sort(Story *s, size_t n, size_t most, double enough) {
    uint16_t *heap = s->order;
    size_t left = n;
    double sum = 0;
    for (size_t i = n / 2; i-- > 0;) sift(s, i, n);
    while (left > 0 && n - left < most) {
        uint16_t top = heap[0];
        heap[0] = heap[--left];
        sift(s, 0, left);
        heap[left] = top;
        sum += (double)s->weights[top];
        if (sum >= enough) break;
    }
    size_t kept = n - left;
    for (size_t i = 0; i < kept / 2; i++) {
        uint16_t swapped = heap[left + i];
        heap[left + i] = heap[n - 1 - i];
        heap[n - 1 - i] = swapped;
    }
    memmove(heap, heap + left, kept * sizeof *heap);
    return kept;
}

static double weigh(const Story *s, size_t n) {
    double sum = 0;
    for (size_t i = 0; i < n; i++) sum += (double)s->weights[s->order[i]];
    return sum;
}

STORY_API int story_sample(Story *s, const StorySettings *set) {
    size_t v = s->vocab, n = 0, bytes;
    float *z, max, acc[16] = {0};
    int chosen = -1;
    story_logits(s);
    z = s->logits;
    max = max_(z, v);
    if (!(max < of_bits(0x7f800000u))) return -1;
    for (uint32_t id = 0; id < v; id++) {
        token_bytes(s, id, &bytes);
        if (bytes == 0 && id != s->eos) z[id] = of_bits(0xff800000u);
    }
    max = max_(z, v);
    if (!(max > of_bits(0xff800000u))) return -1;
    if (set->temperature == 0.0f) {
        for (chosen = 0; z[chosen] != max;) chosen++;
        feed(s, (uint32_t)chosen);
        return chosen;
    }
    float by = 1.0f / set->temperature, most = of_bits(0x7f7fffffu), *restrict w = s->weights;
    by = by > most ? most : by;
    size_t at = 0;
    for (; at + 16 <= v; at += 16)
        for (size_t i = 0; i < 16; i++) {
            w[at + i] = exp_((z[at + i] - max) * by);
            acc[i] += w[at + i];
        }
    for (size_t i = 0; at + i < v; i++) {
        w[at + i] = exp_((z[at + i] - max) * by);
        acc[i] += w[at + i];
    }
    float total = sum_(acc), least = 1.3887944e-11f;
    if (set->top_k == 0) {
        float tail = (1.0f - set->top_p) * total / (float)v;
        least = tail > least ? tail : least;
    }
    for (size_t i = 0; i < v; i++)
        if (w[i] >= least) s->order[n++] = (uint16_t)i;
    if (set->top_k > 0 && set->top_k < n) n = sort(s, n, set->top_k, of_bits(0x7f800000u));
    if (set->top_p < 1.0f) n = sort(s, n, n, (double)set->top_p * (set->top_k == 0 ? (double)total : weigh(s, n)));
    size_t kept = 0;
    for (size_t i = 0; i < n; i++)
        if (w[s->order[i]] >= set->min_p) s->order[kept++] = s->order[i];
    double left = uniform(s) * weigh(s, kept);
    for (size_t i = 0; i < kept; i++) {
        chosen = s->order[i];
        left -= (double)w[chosen];
        if (left < 0.0) break;
    }
    if (chosen >= 0) feed(s, (uint32_t)chosen);
    return chosen;
}
