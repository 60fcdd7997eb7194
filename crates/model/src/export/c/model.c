/*
 * The model: h = E[token]; for each block h += mixer(norm(h)), h += W_down (act(W_gate x) * W_up x), x = norm(h);
 * logits = norm(h) E^T, and what pointers add. One token at a time; the state of a block has constant size.
 */
enum { CONV, DELTA, ATTENTION, LEAKY, SHORTCONV };
enum { X0 = 1, RESET = 2, RELU2 = 4, FLOAT_GATES = 8, UNDECAYED = 16, WORDS = 32 };

typedef struct {
    uint32_t mixer;
    const unsigned char *resid, *norm1, *norm2, *table, *table_scales;
    /* Of conv and shortconv: up; of attention: q, k, v; of delta: q, k, v, gate, and a, b where they are ternary. */
    Matrix in[6], out, gate, up, down;
    const unsigned char *taps[3], *scalars, *a, *b, *bias, *head_norm[2];
    float *state;
} Block;

struct Story {
    uint32_t flags, vocab, dim, hidden, blocks, bigrams, taps, short_taps, heads, window, dheads, dk, dv, dtaps;
    float eps, cap, strength, q_eps, q_scale, k_eps, k_scale, head_eps, attention_scale;
    const unsigned char *turns, *bigram, *bigram_scales, *norm;
    Matrix embedding;
    Pointer pointer;
    Block *block;
    /* Rows of the document so far, without the last, and its token. */
    uint32_t past, before, last;
    Row row;
    float *h, *x0, *x, *u, *m, *g, *up, *v, *w, *logits, *states;
    size_t state_len;
    int fresh;
    /* sample.c, text.c */
    uint64_t rng[4];
    float *weights;
    uint16_t *order;
    unsigned char pending[4];
    uint32_t held;
    uint32_t kind, eos, merges, letters, numbers, bases;
    const unsigned char *ends, *tokens, *bytes, *merge, *letter, *number, *base_ids;
    uint16_t *place, *own, *ids, *joined;
    uint32_t *ranks, *starts;
    char *base_text;
};

/* Reads the model in order; memory is only counted where there is none. */
typedef struct {
    const unsigned char *at, *end;
    char *memory;
    size_t used;
    int bad;
} Reader;

static const unsigned char *take(Reader *r, uint64_t bytes) {
    static const unsigned char none[64];
    if (r->bad || bytes > (uint64_t)(r->end - r->at)) {
        r->bad = 1;
        return none;
    }
    const unsigned char *p = r->at;
    r->at += (size_t)bytes;
    return p;
}

static uint32_t number(Reader *r) { return get32(take(r, 4)); }
static float real(Reader *r) { return getf(take(r, 4), 0); }
static const unsigned char *reals(Reader *r, uint64_t n) { return take(r, 4 * n); }
/* Zero or so many floats. */
static const unsigned char *maybe(Reader *r, uint64_t n) { return number(r) ? reals(r, n) : NULL; }

static void *room(Reader *r, uint64_t bytes) {
    size_t at = r->used;
    if (bytes > SIZE_MAX / 4 - r->used) r->bad = 1;
    if (r->bad) return NULL;
    r->used += ((size_t)bytes + 63) / 64 * 64;
    return r->memory ? r->memory + at : NULL;
}

static Matrix matrix(Reader *r, uint32_t *widest, uint32_t *most) {
    Matrix w;
    w.bytes = number(r);
    w.outputs = number(r);
    w.inputs = number(r);
    w.segment = number(r);
    if (w.outputs == 0 || w.inputs == 0 || w.inputs > 1 << 24 || w.segment == 0 || w.segment > w.inputs) r->bad = 1;
    if (r->bad) w.outputs = w.inputs = w.segment = 1;
    w.segments = (w.inputs + w.segment - 1) / w.segment;
    uint32_t whole = w.segments - 1;
    w.groups = whole * ((w.segment + 15) / 16) + (w.inputs - whole * w.segment + 15) / 16;
    uint64_t blocks = ((uint64_t)w.outputs + 15) / 16;
    w.norm = maybe(r, w.inputs);
    w.cells = take(r, blocks * w.groups * (w.bytes ? 256 : 64));
    w.scales = take(r, blocks * w.segments * 64);
    if (w.groups > *widest) *widest = w.groups;
    if (w.segments > *most) *most = w.segments;
    return w;
}

static uint32_t width_of(uint32_t dv) { return (dv + 15) / 16 * 16; }

/* Reads all of the model; on bad bytes the reader says so. */
static void read_model(Story *s, Reader *r) {
    uint32_t widest = 1, most = 1;
    uint64_t d, u_width = 1, m_width = 1, total = 0;
    s->flags = number(r);
    s->vocab = number(r);
    s->dim = number(r);
    s->hidden = number(r);
    s->blocks = number(r);
    s->bigrams = number(r);
    s->taps = number(r);
    s->short_taps = number(r);
    s->heads = number(r);
    s->window = number(r);
    s->dheads = number(r);
    s->dk = number(r);
    s->dv = number(r);
    s->dtaps = number(r);
    s->pointer.window = number(r);
    s->eps = real(r);
    s->cap = real(r);
    s->strength = real(r);
    s->q_eps = real(r);
    s->q_scale = real(r);
    s->k_eps = real(r);
    s->k_scale = real(r);
    s->head_eps = real(r);
    s->attention_scale = real(r);
    d = s->dim;
    uint32_t limits[] = {s->vocab, s->dim, s->hidden, s->blocks, s->taps, s->short_taps, s->heads, s->window, s->dheads, s->dk, s->dv, s->dtaps};
    for (size_t i = 0; i < sizeof limits / sizeof *limits; i++)
        if (limits[i] == 0 || limits[i] > 1 << 20) r->bad = 1;
    if (r->bad || s->heads > s->dim || s->pointer.window > 1 << 20) {
        r->bad = 1;
        return;
    }
    uint64_t dh = d / s->heads, slots = slots_of(s->window), keys = (uint64_t)s->dheads * s->dk, values = (uint64_t)s->dheads * s->dv;
    s->turns = number(r) ? take(r, 8 * 16 * (dh / 2) * 16) : NULL;
    s->embedding = matrix(r, &widest, &most);
    s->bigram = s->bigrams ? take(r, s->bigrams * d) : NULL;
    s->bigram_scales = s->bigrams ? reals(r, s->bigrams) : NULL;
    s->norm = reals(r, d);
    if (s->pointer.window) {
        s->pointer.key = reals(r, d * d);
        s->pointer.by = real(r);
        s->pointer.bias = real(r);
        s->pointer.words = s->flags & WORDS ? reals(r, s->vocab) : NULL;
        for (uint32_t v = 0; s->pointer.words && !r->bad && v < s->vocab; v++)
            if (read_as(&s->pointer, 1, v) >= s->vocab) r->bad = 1;
    }
    s->block = room(r, s->blocks * sizeof(Block));
    for (uint32_t i = 0; i < s->blocks && !r->bad; i++) {
        Block own, *b = r->memory ? &s->block[i] : &own;
        uint64_t len = 0, u = 0, m = d;
        int inputs = 1;
        memset(b, 0, sizeof *b);
        b->mixer = number(r);
        b->resid = maybe(r, 2);
        b->table = number(r) ? take(r, s->vocab * d) : NULL;
        if (b->table) b->table_scales = reals(r, s->vocab);
        b->norm1 = maybe(r, d);
        b->norm2 = maybe(r, d);
        if (b->mixer == CONV || b->mixer == SHORTCONV) {
            uint32_t k = b->mixer == CONV ? s->taps : s->short_taps;
            b->taps[0] = reals(r, k * d);
            len = (k - 1) * d;
            u = (b->mixer == CONV ? 2 : 3) * d;
        } else if (b->mixer == LEAKY) {
            b->scalars = reals(r, d);
            len = u = d;
        } else if (b->mixer == ATTENTION) {
            for (int j = 0; j < 2; j++) b->head_norm[j] = reals(r, dh);
            inputs = 3;
            len = 2 * slots * d;
            u = 3 * d;
            if (!s->turns || dh % 2) r->bad = 1;
        } else if (b->mixer == DELTA) {
            uint64_t widths[3] = {keys, keys, values};
            for (int j = 0; j < 3; j++) b->taps[j] = reals(r, s->dtaps * widths[j]);
            b->head_norm[0] = maybe(r, s->dv);
            inputs = 6;
            if (s->flags & FLOAT_GATES) {
                inputs = 4;
                b->a = reals(r, s->dheads * d);
                b->b = reals(r, s->dheads * d);
                b->scalars = reals(r, s->dheads);
                b->bias = reals(r, s->dheads);
            }
            len = (s->dtaps - 1) * (2 * keys + values) + keys * width_of(s->dv);
            u = 2 * keys + 2 * values + 2 * s->dheads;
            m = values;
        } else r->bad = 1;
        for (int j = 0; j < inputs; j++) b->in[j] = matrix(r, &widest, &most);
        b->out = matrix(r, &widest, &most);
        b->gate = matrix(r, &widest, &most);
        b->up = matrix(r, &widest, &most);
        b->down = matrix(r, &widest, &most);
        uint64_t made = 0;
        for (int j = 0; j < inputs; j++) {
            made += b->in[j].outputs;
            if (b->in[j].inputs != d) r->bad = 1;
        }
        if (b->mixer == DELTA && inputs == 4) made += 2 * s->dheads;
        if (made != u || b->out.inputs != m || b->out.outputs != d || b->gate.inputs != d || b->up.inputs != d) r->bad = 1;
        if (b->gate.outputs != s->hidden || b->up.outputs != s->hidden || b->down.inputs != s->hidden || b->down.outputs != d) r->bad = 1;
        b->state = room(r, len * 4);
        total += (len * 4 + 63) / 64 * 16;
        if (u > u_width) u_width = u;
        if (m > m_width) m_width = m;
        if (i == 0) s->states = b->state;
    }
    uint64_t ring = s->pointer.window ? slots_of(s->pointer.window) : 0;
    s->pointer.keys = room(r, 4 * ring * d);
    s->pointer.next = room(r, 4 * ring);
    total += ring * (d + 1);
    if (s->embedding.outputs != s->vocab || s->embedding.inputs != d || !s->embedding.bytes || s->embedding.segments != 1) r->bad = 1;
    uint64_t wide = d > s->hidden ? d : s->hidden;
    if (m_width > wide) wide = m_width;
    s->state_len = (size_t)total;
    s->row.q = room(r, 16 * (uint64_t)widest);
#ifdef WIDE
    s->row.wide = room(r, 64 * (uint64_t)widest);
#else
    s->row.wide = NULL;
#endif
    s->row.sums = room(r, 4 * (uint64_t)most);
    s->h = room(r, 4 * d);
    s->x0 = room(r, 4 * d);
    s->x = room(r, 4 * wide);
    s->u = room(r, 4 * u_width);
    s->m = room(r, 4 * m_width);
    s->g = room(r, 4 * (2 * keys + values > s->hidden ? 2 * keys + values : s->hidden));
    s->up = room(r, 4 * (uint64_t)s->hidden);
    s->v = room(r, 4 * (wide > width_of(s->dv) ? wide : width_of(s->dv)));
    uint64_t weights = slots > ring ? slots : ring;
    s->w = room(r, 4 * (weights > width_of(s->dv) ? weights : width_of(s->dv)));
    s->logits = room(r, 4 * (uint64_t)s->vocab);
    s->weights = room(r, 4 * (uint64_t)s->vocab);
    s->order = room(r, 2 * (uint64_t)s->vocab);
}

/* y (+)= w x, x through the matrix's own norm where it has one; rows that lie alike are rounded once. */
static void apply(Story *s, float *y, const float *x, const Matrix *w, int add, int *held) {
    if (w->norm) {
        rmsnorm(s->v, x, w->norm, w->inputs, s->eps);
        quantise(&s->row, s->v, w->inputs, w->segment);
        *held = 0;
    } else if (!*held || s->row.inputs != w->inputs || s->row.segment != w->segment) {
        quantise(&s->row, x, w->inputs, w->segment);
        *held = 1;
    }
    multiply(y, &s->row, w, add);
}

static void add_row(float *restrict h, const unsigned char *restrict codes, const unsigned char *scales, uint32_t at, size_t d) {
    float scale = getf(scales, at);
    codes += at * d;
    for (size_t i = 0; i < d; i++) h[i] += (float)(codes[i] > 127 ? codes[i] - 256 : codes[i]) * scale;
}

/* y = sum_j taps_j v_(t-K+1+j), the rows before in a ring; the row then enters it. */
static void convolve(float *restrict y, float *restrict ring, const float *restrict v, const unsigned char *restrict taps, uint32_t k, size_t d, uint32_t past) {
    uint32_t held = k - 1, back = held < past ? held : past;
    for (size_t i = 0; i < d; i++) y[i] = 0.0f;
    for (uint32_t j = 0; j < back; j++) {
        const float *row = ring + (size_t)((past - back + j) % held) * d;
        const unsigned char *w = taps + 4 * (size_t)(held - back + j) * d;
        for (size_t i = 0; i < d; i++) y[i] += getf(w, i) * row[i];
    }
    for (size_t i = 0; i < d; i++) y[i] += getf(taps + 4 * (size_t)held * d, i) * v[i];
    if (held) memcpy(ring + (size_t)(past % held) * d, v, 4 * d);
}

static void mix_delta(Story *s, Block *b, const float *x) {
    size_t heads = s->dheads, dk = s->dk, dv = s->dv, keys = heads * dk, values = heads * dv, width = width_of(s->dv);
    float *u = s->u, *c = s->g, *state = b->state, *decay = u + 2 * keys + 2 * values, *beta = decay + heads;
    if (s->flags & FLOAT_GATES) {
        for (size_t h = 0; h < heads; h++) {
            decay[h] = dot_with(x, b->a + 4 * h * s->dim, s->dim);
            beta[h] = dot_with(x, b->b + 4 * h * s->dim, s->dim);
            decay[h] = exp_(-getf(b->scalars, h) * softplus_(decay[h] + getf(b->bias, h)));
        }
    } else for (size_t h = 0; h < heads; h++) decay[h] = exp_(-softplus_(-decay[h]) / 16.0f);
    for (size_t h = 0; h < heads; h++) beta[h] = s->strength * sigmoid_(beta[h]);
    size_t at = 0, widths[3] = {keys, keys, values};
    for (int j = 0; j < 3; j++) {
        convolve(c + at, state, u + at, b->taps[j], s->dtaps, widths[j], s->past);
        state += (s->dtaps - 1) * widths[j];
        for (size_t i = at; i < at + widths[j]; i++) c[i] *= sigmoid_(c[i]);
        for (size_t h = 0; j < 2 && h < heads; h++) {
            float *head = c + at + h * dk, eps = j ? s->k_eps : s->q_eps, scale = j ? s->k_scale : s->q_scale;
            float r = scale / sqrt_(dot_(head, head, dk) + eps);
            for (size_t i = 0; i < dk; i++) head[i] *= r;
        }
        at += widths[j];
    }
    for (size_t h = 0; h < heads; h++, state += dk * width) {
        const float *q = c + h * dk, *k = c + keys + h * dk, *v = c + 2 * keys + h * dv, *gate = u + 2 * keys + values + h * dv;
        float alpha = decay[h], *restrict e = s->w, *restrict o = s->v, *m = s->m + h * dv;
        if (s->past == 0) memset(state, 0, 4 * dk * width);
        for (size_t i = 0; i < width; i++) e[i] = 0.0f;
        for (size_t r = 0; r < dk; r++) {
            const float *restrict row = state + r * width;
            for (size_t i = 0; i < width; i++) e[i] += row[i] * k[r];
        }
        for (size_t i = 0; i < width; i++) {
            float held = s->flags & UNDECAYED ? e[i] : alpha * e[i];
            e[i] = beta[h] * ((i < dv ? v[i] : 0.0f) - held);
            o[i] = 0.0f;
        }
        for (size_t r = 0; r < dk; r++) {
            float *restrict row = state + r * width;
            for (size_t i = 0; i < width; i++) {
                row[i] = alpha * row[i] + k[r] * e[i];
                o[i] += row[i] * q[r];
            }
        }
        if (b->head_norm[0]) {
            rmsnorm(m, o, b->head_norm[0], dv, s->head_eps);
            for (size_t i = 0; i < dv; i++) m[i] = gate[i] * sigmoid_(gate[i]) * m[i];
        } else for (size_t i = 0; i < dv; i++) m[i] = sigmoid_(gate[i]) * o[i];
    }
}

/* Cosines, then sines, of a position: the rotation by its digits one after the other. */
static void turn(const Story *s, float *out, uint32_t past, size_t half) {
    int places = 0;
    for (int place = 1; place < 8; place++) places += past >> (4 * place) != 0;
    for (size_t i = 0; i < half; i++) {
        double cosine = 0, sine = 0;
        for (int place = 0; place <= places; place++) {
            size_t row = (size_t)place * 16 + (past >> (4 * place) & 15);
            const unsigned char *p = s->turns + 16 * (row * half + i);
            double c = getd(p), n = getd(p + 8);
            if (place == 0) {
                cosine = c;
                sine = n;
            } else {
                double turned = cosine * c - sine * n;
                sine = sine * c + cosine * n;
                cosine = turned;
            }
        }
        out[i] = (float)cosine;
        out[half + i] = (float)sine;
    }
}

static void mix_attention(Story *s, Block *b) {
    size_t d = s->dim, dh = d / s->heads, half = dh / 2, slots = slots_of(s->window);
    uint32_t past = s->past;
    float *turns = s->x, *y = s->v, *w = s->w;
    turn(s, turns, past, half);
    for (size_t part = 0; part < 2; part++) {
        float by = part ? 1.0f : s->attention_scale;
        for (size_t h = 0; h < s->heads; h++) {
            float *x = s->u + part * d + h * dh;
            rmsnorm(y, x, b->head_norm[part], dh, 1e-6f);
            for (size_t i = 0; i < half; i++) {
                x[i] = by * (y[i] * turns[i] - y[half + i] * turns[half + i]);
                x[half + i] = by * (y[half + i] * turns[i] + y[i] * turns[half + i]);
            }
        }
    }
    size_t slot = past % slots;
    Seen all = seen((uint64_t)past + 1, s->window);
    for (size_t h = 0; h < s->heads; h++) {
        const float *q = s->u + h * dh, *k = s->u + d + h * dh, *v = s->u + 2 * d + h * dh;
        float *keys = b->state + h * 2 * slots * dh, *values = keys + slots * dh, *restrict o = s->m + h * dh, acc[16] = {0};
        for (size_t i = 0; i < dh; i++) key_of(keys, slot, dh)[16 * i] = k[i];
        memcpy(values + slot * dh, v, 4 * dh);
        float top = scores(w, q, keys, dh, &all);
        for (size_t i = 0; i < all.used; i++) w[i] = exp_(w[i] - top);
        for (size_t i = 0; i < all.low; i++) w[i] = 0.0f;
        for (size_t i = all.low_end; i < all.high && i < all.used; i++) w[i] = 0.0f;
        for (size_t i = all.high_end; i < all.used; i++) w[i] = 0.0f;
        for (size_t at = 0; at < all.used; at += 16)
            for (size_t r = 0; r < 16; r++) acc[r] += w[at + r];
        float by = 1.0f / sum_(acc);
        for (size_t i = 0; i < dh; i++) o[i] = 0.0f;
        for (size_t c = 0; c < all.used; c++) {
            const float *restrict value = values + c * dh;
            float weight = w[c];
            for (size_t i = 0; i < dh; i++) o[i] += weight * value[i];
        }
        for (size_t i = 0; i < dh; i++) o[i] *= by;
    }
}

/* Turns u, the projections of a row x, into m, what the mixer makes of them. */
static void mix(Story *s, Block *b, const float *x) {
    size_t d = s->dim;
    float *restrict u = s->u, *restrict m = s->m, *restrict g = s->g;
    switch (b->mixer) {
    case CONV:
        convolve(m, b->state, u + d, b->taps[0], s->taps, d, s->past);
        for (size_t i = 0; i < d; i++) m[i] = sigmoid_(u[i]) * m[i];
        break;
    case SHORTCONV:
        for (size_t i = 0; i < d; i++) g[i] = u[2 * d + i] * u[i];
        convolve(m, b->state, g, b->taps[0], s->short_taps, d, s->past);
        for (size_t i = 0; i < d; i++) m[i] = m[i] * u[d + i];
        break;
    case LEAKY:
        if (s->past == 0) memset(b->state, 0, 4 * d);
        for (size_t i = 0; i < d; i++) {
            float a = getf(b->scalars, i);
            b->state[i] = a * b->state[i] + (1.0f - a) * u[i];
            m[i] = b->state[i];
        }
        break;
    case ATTENTION: mix_attention(s, b); break;
    default: mix_delta(s, b, x); break;
    }
}

static uint32_t bigram_row(uint32_t before, uint32_t token, uint32_t rows) {
    uint32_t x = before << 16 | token;
    x = (x ^ x >> 16) * 0x7feb352du;
    x = (x ^ x >> 15) * 0x846ca68bu;
    x ^= x >> 16;
    return (uint32_t)(((uint64_t)x * rows) >> 32);
}

/* Feeds one token. */
static void feed(Story *s, uint32_t token) {
    size_t d = s->dim;
    float *restrict h = s->h;
    if ((s->flags & RESET) && token == s->eos) s->past = 0;
    const Matrix *e = &s->embedding;
    const unsigned char *cells = e->cells + (size_t)(token / 16) * e->groups * 256 + token % 16 * 4;
    float scale = getf(e->scales, token);
    for (size_t i = 0; i < d; i++) h[i] = ((float)cells[i / 4 * 64 + i % 4] - 128.0f) * scale;
    if (s->bigram) {
        uint32_t before = s->past == 0 ? s->eos : s->last;
        add_row(h, s->bigram, s->bigram_scales, bigram_row(before, token, s->bigrams), d);
    }
    if (s->flags & X0) memcpy(s->x0, h, 4 * d);
    for (uint32_t i = 0; i < s->blocks; i++) {
        Block *b = &s->block[i];
        float *x = h, *u = s->u;
        int held = 0;
        if (b->resid) {
            float r = getf(b->resid, 0), by = getf(b->resid, 1);
            for (size_t j = 0; j < d; j++) h[j] = r * h[j] + by * s->x0[j];
        }
        if (b->table) add_row(h, b->table, b->table_scales, token, d);
        if (b->norm1) rmsnorm(x = s->x, h, b->norm1, d, s->eps);
        for (int j = 0; j < 6 && b->in[j].outputs; u += b->in[j++].outputs) apply(s, u, x, &b->in[j], 0, &held);
        mix(s, b, x);
        held = 0;
        apply(s, h, s->m, &b->out, 1, &held);
        held = 0;
        x = h;
        if (b->norm2) rmsnorm(x = s->x, h, b->norm2, d, s->eps);
        float *restrict g = s->g, *restrict up = s->up;
        apply(s, g, x, &b->gate, 0, &held);
        apply(s, up, x, &b->up, 0, &held);
        if (s->flags & RELU2)
            for (size_t j = 0; j < s->hidden; j++) {
                float own = g[j] < 0.0f ? 0.0f : g[j];
                g[j] = own * own * up[j];
            }
        else for (size_t j = 0; j < s->hidden; j++) g[j] = g[j] * sigmoid_(g[j]) * up[j];
        held = 0;
        apply(s, h, g, &b->down, 1, &held);
    }
    if (s->pointer.window) {
        rmsnorm(s->x, h, s->norm, d, s->eps);
        keep_row(&s->pointer, s->x, d, token, s->past);
    }
    s->last = token;
    s->before = s->past;
    if (s->past < UINT32_MAX) s->past++;
    s->fresh = 0;
}

STORY_API const float *story_logits(Story *s) {
    if (s->fresh) return s->logits;
    rmsnorm(s->x, s->h, s->norm, s->dim, s->eps);
    quantise(&s->row, s->x, s->dim, s->dim);
    multiply(s->logits, &s->row, &s->embedding, 0);
    if (s->cap > 0.0f)
        for (size_t i = 0; i < s->vocab; i++)
            s->logits[i] = s->cap * (1.0f - 2.0f / (exp_(2.0f * (s->logits[i] / s->cap)) + 1.0f));
    if (s->pointer.window) {
        for (size_t i = 0; i < s->dim; i++) s->x[i] *= s->pointer.by;
        point(&s->pointer, s->logits, s->x, s->w, s->weights, s->dim, s->last, s->before);
    }
    s->fresh = 1;
    return s->logits;
}

STORY_API uint32_t story_vocab(const Story *s) { return s->vocab; }
STORY_API int story_eos(const Story *s) { return (int)s->eos; }
