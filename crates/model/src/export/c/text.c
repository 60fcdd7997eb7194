/*
 * Text to tokens and back. GPT-2's split of a text into pieces,
 *     's|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+
 * each of which starts as its bytes, and the adjacent pair of least rank is merged, leftmost first, until none has a rank.
 */
enum { KIND_BYTES, KIND_BPE, KIND_FREQUENCY };
enum { LETTER, DIGIT, SPACE, OTHER };
#define NO_RANK UINT32_MAX

static int in_ranges(const unsigned char *ranges, uint32_t n, uint32_t c) {
    uint32_t low = 0, high = n;
    while (low < high) {
        uint32_t mid = (low + high) / 2;
        if (get32(ranges + 8 * (size_t)mid + 4) < c) low = mid + 1;
        else high = mid;
    }
    return low < n && get32(ranges + 8 * (size_t)low) <= c;
}

/* Length of the character at p; 0: not UTF-8. */
static size_t character(const unsigned char *p, size_t n, uint32_t *c) {
    static const uint32_t least[] = {0, 0, 0x80, 0x800, 0x10000};
    size_t len = p[0] < 0x80 ? 1 : p[0] < 0xc2 ? 0 : p[0] < 0xe0 ? 2 : p[0] < 0xf0 ? 3 : p[0] < 0xf5 ? 4 : 0;
    if (len == 0 || len > n) return 0;
    *c = len == 1 ? p[0] : p[0] & (0xffu >> (len + 1));
    for (size_t i = 1; i < len; i++) {
        if ((p[i] & 0xc0) != 0x80) return 0;
        *c = *c << 6 | (p[i] & 0x3fu);
    }
    return *c < least[len] || *c > 0x10ffff || (*c >= 0xd800 && *c < 0xe000) ? 0 : len;
}

static int class_of(const Story *s, uint32_t c) {
    if (c < 128) {
        if ((c | 32) >= 'a' && (c | 32) <= 'z') return LETTER;
        if (c >= '0' && c <= '9') return DIGIT;
        return c == ' ' || (c >= 9 && c <= 13) ? SPACE : OTHER;
    }
    if (c == 0x85 || c == 0xa0 || c == 0x1680 || (c >= 0x2000 && c <= 0x200a) || c == 0x2028 || c == 0x2029 || c == 0x202f || c == 0x205f || c == 0x3000)
        return SPACE;
    if (in_ranges(s->letter, s->letters, c)) return LETTER;
    return in_ranges(s->number, s->numbers, c) ? DIGIT : OTHER;
}

/* The end of the run of a class from p on. */
static const unsigned char *run(const Story *s, const unsigned char *p, const unsigned char *end, int kind) {
    uint32_t c;
    size_t len;
    while (p < end && (len = character(p, (size_t)(end - p), &c)) > 0 && class_of(s, c) == kind) p += len;
    return p;
}

/* The end of the piece at p. */
static const unsigned char *piece(const Story *s, const unsigned char *p, const unsigned char *end) {
    static const char suffixes[][4] = {"'s", "'t", "'re", "'ve", "'m", "'ll", "'d"};
    size_t left = (size_t)(end - p);
    for (size_t i = 0; *p == '\'' && i < sizeof suffixes / sizeof *suffixes; i++) {
        size_t n = strlen(suffixes[i]);
        if (n <= left && memcmp(p, suffixes[i], n) == 0) return p + n;
    }
    uint32_t c, next;
    size_t len = character(p, left, &c);
    int kind = class_of(s, c);
    if (kind != SPACE) return run(s, p + len, end, kind);
    size_t other = c == ' ' && p + 1 < end ? character(p + 1, left - 1, &next) : 0;
    if (other && class_of(s, next) != SPACE) return run(s, p + 1 + other, end, class_of(s, next));
    /* The last space before a word is left to the word, unless it is the only one. */
    const unsigned char *to = run(s, p + len, end, SPACE), *last = to - 1;
    while ((*last & 0xc0) == 0x80) last--;
    return to == end || last == p ? to : last;
}

/* The base token with these bytes, by its place in the order of the bytes; NO_RANK: none. */
static uint32_t find_base(const Story *s, const unsigned char *p, size_t n) {
    uint32_t low = 0, high = s->bases;
    while (low < high) {
        uint32_t mid = (low + high) / 2;
        size_t len = s->starts[mid + 1] - s->starts[mid], least = len < n ? len : n;
        int order = memcmp(s->base_text + s->starts[mid], p, least);
        if (order == 0 && len == n) return mid;
        if (order < 0 || (order == 0 && len < n)) low = mid + 1;
        else high = mid;
    }
    return NO_RANK;
}

/* Rank and result of merging symbol i with the next, where starts are those of symbols in the piece. */
static uint32_t rank_of(const Story *s, const unsigned char *p, size_t i, const uint16_t *from, uint16_t *both) {
    if (s->kind == KIND_FREQUENCY) {
        uint32_t at = find_base(s, p + from[i], (size_t)(from[i + 2] - from[i]));
        if (at == NO_RANK) return NO_RANK;
        *both = (uint16_t)at;
        return get16(s->base_ids + 2 * (size_t)at);
    }
    uint32_t pair = (uint32_t)s->ids[i] << 16 | s->ids[i + 1], low = 0, high = s->merges;
    while (low < high) {
        uint32_t mid = (low + high) / 2, own = get32(s->merge + 8 * (size_t)mid);
        if (own == pair) {
            *both = (uint16_t)get16(s->merge + 8 * (size_t)mid + 4);
            return get16(s->merge + 8 * (size_t)mid + 6);
        }
        if (own < pair) low = mid + 1;
        else high = mid;
    }
    return NO_RANK;
}

/* Merges a piece into ids; returns their number. */
static size_t merge_piece(Story *s, const unsigned char *p, size_t n) {
    uint16_t *ids = s->ids, *joined = s->joined, *from = s->place;
    uint32_t *ranks = s->ranks;
    size_t count = n;
    for (size_t i = 0; i <= n; i++) from[i] = (uint16_t)i;
    for (size_t i = 0; i < n; i++)
        ids[i] = (uint16_t)(s->kind == KIND_BPE ? get16(s->bytes + 2 * p[i]) : find_base(s, p + i, 1));
    for (size_t i = 0; i + 1 < n; i++) ranks[i] = rank_of(s, p, i, from, &joined[i]);
    while (count > 1) {
        size_t best = 0;
        for (size_t i = 1; i + 1 < count; i++) best = ranks[i] < ranks[best] ? i : best;
        if (ranks[best] == NO_RANK) break;
        ids[best] = joined[best];
        count--;
        memmove(ids + best + 1, ids + best + 2, (count - best - 1) * sizeof *ids);
        memmove(from + best + 1, from + best + 2, (count - best) * sizeof *from);
        memmove(ranks + best, ranks + best + 1, (count - best) * sizeof *ranks);
        memmove(joined + best, joined + best + 1, (count - best) * sizeof *joined);
        if (best + 1 < count) ranks[best] = rank_of(s, p, best, from, &joined[best]);
        if (best > 0) ranks[best - 1] = rank_of(s, p, best - 1, from, &joined[best - 1]);
    }
    return count;
}

STORY_API int story_feed(Story *s, const char *text, size_t length) {
    const unsigned char *p = (const unsigned char *)text, *end = p + length;
    int fed = 0;
    uint32_t c;
    for (size_t at = 0, len; at < length; at += len)
        if ((len = character(p + at, length - at, &c)) == 0) return -1;
    for (const unsigned char *at = p; s->kind != KIND_BYTES && at < end;) {
        const unsigned char *to = piece(s, at, end);
        if (to - at > STORY_WORD) return -1;
        at = to;
    }
    while (p < end) {
        if (s->kind == KIND_BYTES) {
            feed(s, *p++);
            fed++;
            continue;
        }
        const unsigned char *to = piece(s, p, end);
        size_t n = (size_t)(to - p), count = 1;
        uint32_t whole = s->kind == KIND_FREQUENCY ? find_base(s, p, n) : NO_RANK;
        if (whole != NO_RANK) s->ids[0] = (uint16_t)whole;
        else count = merge_piece(s, p, n);
        for (size_t i = 0; i < count; i++, fed++)
            feed(s, s->kind == KIND_FREQUENCY ? s->own[s->ids[i]] : s->ids[i]);
        p = to;
    }
    return fed;
}

/* The bytes of a token. */
static const unsigned char *token_bytes(const Story *s, uint32_t token, size_t *n) {
    static const unsigned char none[1];
    *n = 0;
    if (token >= s->vocab) return none;
    if (s->kind == KIND_BYTES) {
        *n = token < 256;
        return *n ? s->tokens + token : none;
    }
    uint32_t from = token ? get32(s->ends + 4 * (size_t)(token - 1)) : 0;
    *n = get32(s->ends + 4 * (size_t)token) - from;
    return s->tokens + from;
}

/* Appends what is certain of the bytes held to text: whole characters, and U+FFFD for what can no longer become one. */
static size_t flush(Story *s, const unsigned char *p, size_t n, int last, char *text) {
    size_t out = 0, at = 0;
    while (at < n) {
        uint32_t c;
        size_t len = character(p + at, n - at, &c);
        if (len) {
            memcpy(text + out, p + at, len);
            out += len;
            at += len;
            continue;
        }
        /* The longest beginning of a character, which is replaced as one. */
        unsigned char b = p[at];
        size_t whole = b >= 0xc2 && b < 0xe0 ? 2 : b >= 0xe0 && b < 0xf0 ? 3 : b >= 0xf0 && b < 0xf5 ? 4 : 1;
        unsigned low = b == 0xe0 ? 0xa0 : b == 0xf0 ? 0x90 : 0x80, high = b == 0xed ? 0x9f : b == 0xf4 ? 0x8f : 0xbf;
        for (len = 1; len < whole && at + len < n && p[at + len] >= low && p[at + len] <= high; len++) low = 0x80, high = 0xbf;
        if (at + len == n && len < whole && !last) break;
        memcpy(text + out, "\xef\xbf\xbd", 3);
        out += 3;
        at += len;
    }
    s->held = (uint32_t)(n - at);
    memmove(s->pending, p + at, n - at);
    return out;
}

STORY_API size_t story_text(Story *s, int token, char *text) {
    unsigned char all[1024 + 4];
    size_t n, held = s->held;
    const unsigned char *bytes = token_bytes(s, (uint32_t)token, &n);
    if (n > 1024) n = 1024;
    memcpy(all, s->pending, held);
    memcpy(all + held, bytes, n);
    return flush(s, all, held + n, token == (int)s->eos, text);
}

/* Reads the vocabulary. */
static void read_text(Story *s, Reader *r) {
    s->kind = number(r);
    s->eos = number(r);
    if (s->kind > KIND_FREQUENCY || s->eos >= s->vocab) r->bad = 1;
    if (r->bad) return;
    if (s->kind == KIND_BYTES) {
        if (s->vocab < 257) r->bad = 1;
        s->tokens = take(r, 256);
        return;
    }
    s->ends = take(r, 4 * (uint64_t)s->vocab);
    uint32_t before = 0;
    for (uint32_t i = 0; i < s->vocab && !r->bad; i++) {
        uint32_t end = get32(s->ends + 4 * (size_t)i);
        if (end < before) r->bad = 1;
        before = end;
    }
    s->tokens = take(r, before);
    s->letters = number(r);
    s->letter = take(r, 8 * (uint64_t)s->letters);
    s->numbers = number(r);
    s->number = take(r, 8 * (uint64_t)s->numbers);
    s->ids = room(r, 2 * STORY_WORD);
    s->joined = room(r, 2 * STORY_WORD);
    s->place = room(r, 2 * (STORY_WORD + 1));
    s->ranks = room(r, 4 * STORY_WORD);
    if (s->kind == KIND_BPE) {
        s->bytes = take(r, 512);
        s->merges = number(r);
        s->merge = take(r, 8 * (uint64_t)s->merges);
        for (uint32_t i = 0; i < 256 && !r->bad; i++)
            if (get16(s->bytes + 2 * i) >= s->vocab) r->bad = 1;
        for (uint32_t i = 0; i < s->merges && !r->bad; i++)
            if (get16(s->merge + 8 * (size_t)i + 4) >= s->vocab) r->bad = 1;
        return;
    }
    /* GPT-2's tokens in the order of their bytes, each as what it shares with the one before, and the rest. */
    s->bases = number(r);
    if (s->bases > 65535) r->bad = 1;
    uint32_t length = number(r);
    s->base_ids = take(r, 2 * (uint64_t)s->bases);
    const unsigned char *own = take(r, 2 * (uint64_t)s->bases);
    s->own = room(r, 2 * (uint64_t)s->bases);
    s->starts = room(r, 4 * ((uint64_t)s->bases + 1));
    s->base_text = room(r, length);
    uint32_t at = 0, previous = 0;
    for (uint32_t i = 0; i < s->bases && !r->bad; i++) {
        const unsigned char *two = take(r, 2);
        uint32_t shared = two[0], rest = two[1];
        const unsigned char *bytes = take(r, rest);
        if (shared > at - previous || shared + rest > length - at || get16(own + 2 * (size_t)i) >= s->vocab) r->bad = 1;
        if (r->bad || !r->memory) {
            previous = at;
            at += shared + rest;
            continue;
        }
        s->own[i] = (uint16_t)get16(own + 2 * (size_t)i);
        s->starts[i] = at;
        memcpy(s->base_text + at, s->base_text + previous, shared);
        memcpy(s->base_text + at + shared, bytes, rest);
        previous = at;
        at += shared + rest;
        s->starts[i + 1] = at;
    }
    /* Every byte is a token. */
    for (int i = 0; i < 256 && !r->bad && r->memory; i++) {
        unsigned char byte = (unsigned char)i;
        if (find_base(s, &byte, 1) == NO_RANK) r->bad = 1;
    }
}

static Story *open_story(Reader *r, Story *s) {
    memset(s, 0, sizeof *s);
    if (memcmp(take(r, 8), "FLSTORY2", 8) != 0) r->bad = 1;
    read_model(s, r);
    if (!r->bad) read_text(s, r);
    return r->bad || r->at != r->end ? NULL : s;
}

STORY_API size_t story_size(const unsigned char *model, size_t bytes) {
    Story story;
    Reader r = {model, model + bytes, NULL, 0, 0};
    room(&r, sizeof story);
    return open_story(&r, &story) ? r.used : 0;
}

STORY_API Story *story_init(void *memory, const unsigned char *model, size_t bytes) {
    Reader r = {model, model + bytes, memory, 0, 0};
    Story *s = open_story(&r, room(&r, sizeof *s));
    if (s) story_reset(s, 0);
    return s;
}
