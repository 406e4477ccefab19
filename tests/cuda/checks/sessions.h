// Sessions with keys and values for the checks of attention, and the same attention in plain f64 loops.
#pragma once

#include <cmath>
#include <memory>

#include "check.h"
#include "device.cuh"

// One layer's attention. The other layers and all slots that no query sees hold NaN.
struct Shape {
    u32 head_dim, n_head, n_kv_head;
    u32 slots, window;
    bool alibi;
};

constexpr u32 N_LAYER = 2;
constexpr u32 LAYER = 1;

inline KvLayout layout_of(const Shape &shape) {
    return {shape.slots, LAYER, shape.n_kv_head, shape.head_dim, (shape.head_dim + 3) / 4 * 4};
}

inline u32 padded(u32 width) { return (width + 31) / 32 * 32; }

inline u64 first_visible(u64 pos, u32 window) { return pos + 1 > window ? pos + 1 - window : 0; }

// Keys and values of the positions first..=last.
struct Session {
    Shape shape;
    u64 first;
    std::vector<float> keys, values; // (positions, n_kv_head, head_dim)
    std::vector<std::unique_ptr<emulation::Array<float>>> pages;
    emulation::Array<u64> table;

    Session(const Shape &shape, u64 first, u64 last, Random &random)
        : shape(shape), first(first), keys(random.floats((last + 1 - first) * shape.n_kv_head * shape.head_dim, 3)),
          values(random.floats(keys.size())), table(shape.slots / PAGE) {
        u32 head_ld = layout_of(shape).head_ld;
        size_t head_size = 2 * PAGE * head_ld;
        for (u64 &address : table) {
            pages.push_back(std::make_unique<emulation::Array<float>>(N_LAYER * shape.n_kv_head * head_size));
            address = (u64)pages.back()->data();
        }
        for (u64 pos = first; pos <= last; pos++) {
            u64 slot = pos % shape.slots;
            for (u32 head = 0; head < shape.n_kv_head; head++) {
                float *to = pages[slot / PAGE]->data() + (LAYER * shape.n_kv_head + head) * head_size +
                            slot % PAGE * head_ld;
                for (u32 i = 0; i < head_ld; i++) {
                    to[i] = i < shape.head_dim ? key(pos, head)[i] : 0;
                    to[PAGE * head_ld + i] = i < shape.head_dim ? value(pos, head)[i] : 0;
                }
            }
        }
    }

    const float *key(u64 pos, u32 head) const {
        return &keys[((pos - first) * shape.n_kv_head + head) * shape.head_dim];
    }
    const float *value(u64 pos, u32 head) const {
        return &values[((pos - first) * shape.n_kv_head + head) * shape.head_dim];
    }
};

// Slopes as for ALiBi, or zeros.
inline std::vector<float> slopes_of(const Shape &shape) {
    std::vector<float> slopes(shape.n_head, 0.0f);
    if (shape.alibi)
        for (u32 head = 0; head < shape.n_head; head++) slopes[head] = exp2f(-8.0f * (head + 1) / shape.n_head);
    return slopes;
}

// What a query at `pos` gets from its session. q, out: (n_head, head_dim)
inline void attend(float *out, const float *q, const Session &session, u64 pos, const std::vector<float> &slopes) {
    const Shape &shape = session.shape;
    u64 first = first_visible(pos, shape.window);
    std::vector<double> scores(pos + 1 - first), sums(shape.head_dim);
    for (u32 head = 0; head < shape.n_head; head++) {
        u32 kv_head = head / (shape.n_head / shape.n_kv_head);
        double most = -INFINITY, total = 0;
        for (u64 p = first; p <= pos; p++) {
            double dot = 0;
            for (u32 i = 0; i < shape.head_dim; i++)
                dot += double(q[head * shape.head_dim + i]) * session.key(p, kv_head)[i];
            scores[p - first] = dot / sqrt(double(shape.head_dim)) - double(slopes[head]) * double(pos - p);
            most = std::fmax(most, scores[p - first]);
        }
        for (double &sum : sums) sum = 0;
        for (u64 p = first; p <= pos; p++) {
            double weight = exp(scores[p - first] - most);
            total += weight;
            for (u32 i = 0; i < shape.head_dim; i++) sums[i] += weight * session.value(p, kv_head)[i];
        }
        for (u32 i = 0; i < shape.head_dim; i++) out[head * shape.head_dim + i] = float(sums[i] / total);
    }
}

// What stands in the output before the launch, and beyond its width afterwards.
constexpr float UNTOUCHED = 7;

// Queries (rows, padded(width)) with zeros beyond the width.
inline std::vector<float> queries_of(const Shape &shape, u32 rows, Random &random) {
    u32 width = shape.n_head * shape.head_dim;
    std::vector<float> q(rows * padded(width), 0.0f);
    for (size_t i = 0; i < q.size(); i++)
        if (i % padded(width) < width) q[i] = 3 * random.number();
    return q;
}

inline std::string name_of(const char *kernel, const Shape &shape, u32 rows, u64 pos) {
    char text[200];
    snprintf(text, sizeof text, "%s head_dim %u heads %u/%u slots %u window %u%s, %u rows, last position %llu", kernel,
             shape.head_dim, shape.n_head, shape.n_kv_head, shape.slots, shape.window, shape.alibi ? " alibi" : "",
             rows, (unsigned long long)pos);
    return text;
}
