// Embedding of tokens with what belongs to their positions.
#include "common.cuh"

#define POSITION_NONE 0
#define POSITION_ENCODING 1 // the sinusoid is added
#define POSITION_TABLE 2    // a row of the table is added
#define POSITION_MAP 3      // a linear map of the sinusoid is added

struct EmbedArgs {
    float *x;             // (rows, x_ld)
    const void *tokens;   // (vocab_size, w_ld)
    const Row *rows;
    Encoding encoding;
    const void *position; // table: (max_seq_len, w_ld); map: (n_embd, map_ld)
    const float *bias;    // of the map. (n_embd)
    u32 x_ld, w_ld, map_ld, n_embd;
    u32 kind;
};

template <class E> DEVICE void embed(const EmbedArgs &a) {
    wait_for_previous();
    release_next();
    u32 r = blockIdx.x;
    const E *token = (const E *)a.tokens + (u64)a.rows[r].token * a.w_ld;
    float *x = a.x + (u64)r * a.x_ld;
    const float *encoding = a.encoding.width ? encoding_of(a.encoding, r) : nullptr;
    for (u32 i = threadIdx.x; i < a.n_embd; i += blockDim.x) {
        float v = to_f32(token[i]);
        if (a.kind == POSITION_ENCODING) {
            v += encoding[i];
        } else if (a.kind == POSITION_TABLE) {
            v += to_f32(((const E *)a.position)[a.rows[r].pos * a.w_ld + i]);
        } else if (a.kind == POSITION_MAP) {
            const E *w = (const E *)a.position + (u64)i * a.map_ld;
            float sum = 0.0f;
            for (u32 j = 0; j < a.encoding.width; j++) sum = fmaf(to_f32(w[j]), encoding[j], sum);
            v += sum + a.bias[i];
        }
        x[i] = v;
    }
}

KERNEL(256) embed_f32(EmbedArgs a) { embed<float>(a); }
KERNEL(256) embed_f16(EmbedArgs a) { embed<f16>(a); }
KERNEL(256) embed_bf16(EmbedArgs a) { embed<bf16>(a); }
