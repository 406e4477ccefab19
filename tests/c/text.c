/* Text to tokens and back, in buffers of the caller. */
#include "check.h"

static void encoding(const teeny_model *model) {
    uint32_t tokens[8];
    uint32_t before[8];
    size_t len = 77;
    size_t i;
    memset(tokens, 7, sizeof tokens);
    memcpy(before, tokens, sizeof tokens);

    EXPECT(teeny_model_encode(model, NULL, 3, tokens, 8, &len), TEENY_NULL_POINTER, "text: found");
    EXPECT(teeny_model_encode(model, "ABC", 3, NULL, 8, &len), TEENY_NULL_POINTER, "tokens: found");
    EXPECT(teeny_model_encode(model, "ABC", 3, tokens, 8, NULL), TEENY_NULL_POINTER, "len: found");
    EXPECT(teeny_model_encode(model, "ABC", 3, made_up((uintptr_t)tokens + 1), 7, &len),
           TEENY_INVALID_ARGUMENT, "tokens: found address");
    EXPECT(teeny_model_encode(model, "ABC", 3, tokens, 8, made_up((uintptr_t)&len + 1)),
           TEENY_INVALID_ARGUMENT, "len: found address");
    EXPECT(teeny_model_encode(model, "ABC", SIZE_MAX, tokens, 8, &len), TEENY_INVALID_ARGUMENT,
           "text: found length");
    EXPECT(teeny_model_encode(model, "A\xff", 2, tokens, 8, &len), TEENY_INVALID_ARGUMENT,
           "text: found byte 0xff at 1, expected UTF-8");
    EXPECT(teeny_model_encode(model, "A\xc3\xa9", 2, tokens, 8, &len), TEENY_INVALID_ARGUMENT,
           "text: found byte 0xc3 at 1");
    /* A surrogate, an overlong form, a code point too high: no UTF-8. */
    FAILS(teeny_model_encode(model, "\xed\xa0\x80", 3, tokens, 8, &len), TEENY_INVALID_ARGUMENT);
    FAILS(teeny_model_encode(model, "\xc1\x81", 2, tokens, 8, &len), TEENY_INVALID_ARGUMENT);
    FAILS(teeny_model_encode(model, "\xf4\x90\x80\x80", 4, tokens, 8, &len),
          TEENY_INVALID_ARGUMENT);
    EXPECT(teeny_model_encode(model, "AB1C", 4, tokens, 8, &len), TEENY_TOKENIZER,
           "'1' (U+0031) at byte 2");
    EXPECT(teeny_model_encode(model, "A\0B", 3, tokens, 8, &len), TEENY_TOKENIZER,
           "(U+0000) at byte 1");
    CHECK(len == 77 && memcmp(tokens, before, sizeof tokens) == 0);

    for (i = 1; i < 4; i++) {
        len = 77;
        EXPECT(teeny_model_encode(model, "AB\303\251C", 5, tokens, i, &len),
               TEENY_BUFFER_TOO_SMALL, "4");
        CHECK(len == 4 && memcmp(tokens, before, sizeof tokens) == 0);
    }
    len = 77;
    OK(teeny_model_encode(model, "AB\303\251C", 5, NULL, 0, &len));
    CHECK(len == 4);
    len = 77;
    OK(teeny_model_encode(model, "AB\303\251C", 5, tokens, 0, &len));
    CHECK(len == 4 && memcmp(tokens, before, sizeof tokens) == 0);
    OK(teeny_model_encode(model, "AB\303\251C1", 5, tokens, 4, &len));
    CHECK(len == 4 && tokens[0] == 0 && tokens[1] == 1 && tokens[2] == 0xE9 - 'A');
    CHECK(tokens[3] == 2 && tokens[4] == before[4]);
    OK(teeny_model_encode(model, "", 0, tokens, 8, &len));
    CHECK(len == 0);
}

static void decoding(const teeny_model *model) {
    static const uint32_t tokens[] = {0, 1, 0xE9 - 'A', 2};
    static const uint32_t outside[] = {0, VOCAB};
    static const char text[] = "AB\303\251C";
    char buffer[8];
    char before[8];
    size_t len = 77;
    size_t i;
    memset(buffer, 7, sizeof buffer);
    memcpy(before, buffer, sizeof buffer);

    EXPECT(teeny_model_decode(model, NULL, 4, buffer, 8, &len), TEENY_NULL_POINTER, "tokens: ");
    EXPECT(teeny_model_decode(model, tokens, 4, NULL, 8, &len), TEENY_NULL_POINTER, "text: found");
    EXPECT(teeny_model_decode(model, tokens, 4, buffer, 8, NULL), TEENY_NULL_POINTER, "len: found");
    EXPECT(teeny_model_decode(model, made_up((uintptr_t)tokens + 2), 3, buffer, 8, &len),
           TEENY_INVALID_ARGUMENT, "tokens: found address");
    EXPECT(teeny_model_decode(model, tokens, 4, buffer, 8, made_up((uintptr_t)&len + 4)),
           TEENY_INVALID_ARGUMENT, "len: found address");
    FAILS(teeny_model_decode(model, tokens, SIZE_MAX, buffer, 8, &len), TEENY_INVALID_ARGUMENT);
    FAILS(teeny_model_decode(model, tokens, SIZE_MAX / 4, buffer, 8, &len), TEENY_INVALID_ARGUMENT);
    EXPECT(teeny_model_decode(model, outside, 2, buffer, 8, &len), TEENY_TOKENIZER,
           "token 200 at index 1");
    CHECK(len == 77 && memcmp(buffer, before, sizeof buffer) == 0);
    for (i = 1; i < 5; i++) {
        len = 77;
        EXPECT(teeny_model_decode(model, tokens, 4, buffer, i, &len), TEENY_BUFFER_TOO_SMALL, "5");
        CHECK(len == 5 && memcmp(buffer, before, sizeof buffer) == 0);
    }
    len = 77;
    OK(teeny_model_decode(model, tokens, 4, NULL, 0, &len));
    CHECK(len == 5);
    OK(teeny_model_decode(model, tokens, 4, buffer, 5, &len));
    CHECK(len == 5 && memcmp(buffer, text, 5) == 0 && buffer[5] == before[5]);
    OK(teeny_model_decode(model, tokens, 0, buffer, 8, &len));
    CHECK(len == 0);
}

static void every_token(const teeny_model *model) {
    teeny_text bytes = {"untouched", 9};
    char unaligned[2 * sizeof bytes] = {0};
    uint32_t token;
    EXPECT(teeny_model_token_bytes(model, 0, NULL), TEENY_NULL_POINTER, "bytes: found NULL");
    FAILS(teeny_model_token_bytes(model, 0, (void *)(unaligned + 1)), TEENY_INVALID_ARGUMENT);
    EXPECT(teeny_model_token_bytes(model, VOCAB, &bytes), TEENY_INVALID_ARGUMENT, "200");
    FAILS(teeny_model_token_bytes(model, UINT32_MAX, &bytes), TEENY_INVALID_ARGUMENT);
    CHECK(bytes.len == 9 && strcmp(bytes.data, "untouched") == 0);
    for (token = 0; token < VOCAB; token++) {
        const uint32_t character = 'A' + token;
        uint32_t found = 0;
        size_t len = 0;
        char text[4];
        OK(teeny_model_token_bytes(model, token, &bytes));
        CHECK(bytes.len == (character < 0x80 ? 1U : 2U));
        if (character < 0x80) {
            CHECK((unsigned char)bytes.data[0] == character);
        } else {
            CHECK((unsigned char)bytes.data[0] == (0xC0 | character >> 6));
            CHECK((unsigned char)bytes.data[1] == (0x80 | (character & 0x3F)));
        }
        OK(teeny_model_encode(model, bytes.data, bytes.len, &found, 1, &len));
        CHECK(len == 1 && found == token);
        OK(teeny_model_decode(model, &token, 1, text, sizeof text, &len));
        CHECK(len == bytes.len && memcmp(text, bytes.data, len) == 0);
    }
}

void text_group(void) {
    teeny_model *model = load("model");
    teeny_session *session;
    teeny_text bytes;
    encoding(model);
    decoding(model);
    every_token(model);
    /* Borrowed from the model, which the session keeps. */
    session = new_session(model);
    OK(teeny_model_token_bytes(model, 0xE9 - 'A', &bytes));
    teeny_model_free(model);
    CHECK(bytes.len == 2 && memcmp(bytes.data, "\xc3\xa9", 2) == 0);
    teeny_session_free(session);
}
