// Times llama.cpp; cpu.py asks it for one round at a time, in turn with the example `measure` of teeny:
//
//     llama_bench MODEL.gguf --threads N [--kv f32|f16|q8]
//     llama_bench --version
//     llama_bench --as f32|bf16|q8 MODEL.gguf OUTPUT.gguf     writes the model in another type
//
// It reads lines and answers each with a line of JSON (README.md has the table); when input ends, so does it.
// Everything that a user of llama.cpp gets without asking is as it is: flash attention by itself, repacked
// weights, memory mapping, keys and values in f16 unless --kv says something else.

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <iostream>
#include <map>
#include <memory>
#include <sstream>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "llama.h"

namespace {

using Clock = std::chrono::steady_clock;
using Context = std::unique_ptr<llama_context, decltype(&llama_free)>;

class Bench {
public:
    Bench(const std::string &path, int threads, ggml_type kv) : threads_(threads), kv_(kv) {
        model_.reset(llama_model_load_from_file(path.c_str(), llama_model_default_params()));
        if (!model_) {
            throw std::runtime_error(path + " cannot be loaded");
        }
        vocab_size_ = llama_vocab_n_tokens(llama_model_get_vocab(model_.get()));
    }

    // `n` tokens for each of `sequences`, one at a time. Token i is the same on every side.
    double decode(int sequences, int n) {
        llama_context *context = prepared(sequences, n);
        const auto start = Clock::now();
        for (int i = 0; i < n; i++) {
            begin();
            for (int sequence = 0; sequence < sequences; sequence++) {
                push(fixed(i + sequence), i, sequence, true);
            }
            run(context);
            for (int sequence = 0; sequence < sequences; sequence++) {
                drawn_ += likeliest(llama_get_logits_ith(context, sequence));
            }
        }
        return since(start);
    }

    double prefill(int n) {
        llama_context *context = prepared(1, n);
        const auto start = Clock::now();
        begin();
        for (int i = 0; i < n; i++) {
            push(fixed(i), i, 0, i == n - 1);
        }
        run(context);
        drawn_ += likeliest(llama_get_logits_ith(context, -1));
        return since(start);
    }

    // The logits after the last of these tokens, which are fed one by one.
    std::vector<float> logits(const std::vector<llama_token> &tokens) {
        llama_context *context = prepared(1, static_cast<int>(tokens.size()));
        for (size_t i = 0; i < tokens.size(); i++) {
            begin();
            push(tokens[i], static_cast<llama_pos>(i), 0, true);
            run(context);
        }
        const float *logits = llama_get_logits_ith(context, -1);
        return {logits, logits + vocab_size_};
    }

    // The tokens of a text, with those that the vocabulary has for marks.
    std::vector<llama_token> tokens(const std::string &text) {
        const llama_vocab *vocab = llama_model_get_vocab(model_.get());
        std::vector<llama_token> tokens(text.size() + 8);
        const int n = llama_tokenize(vocab, text.data(), static_cast<int32_t>(text.size()), tokens.data(),
                                     static_cast<int32_t>(tokens.size()), true, true);
        if (n < 0) {
            throw std::runtime_error("llama_tokenize has failed with " + std::to_string(n));
        }
        tokens.resize(static_cast<size_t>(n));
        return tokens;
    }

    // The `n` likeliest tokens behind these, one after the other, and by how much each is the likeliest.
    std::vector<std::pair<llama_token, float>> greedy(int n, const std::vector<llama_token> &prompt) {
        llama_context *context = prepared(1, static_cast<int>(prompt.size()) + n);
        std::vector<std::pair<llama_token, float>> drawn;
        for (int i = 0; i + 1 < static_cast<int>(prompt.size()) + n; i++) {
            const bool given = i < static_cast<int>(prompt.size());
            begin();
            push(given ? prompt[static_cast<size_t>(i)] : drawn.back().first, i, 0, true);
            run(context);
            if (i + 1 >= static_cast<int>(prompt.size())) {
                const float *logits = llama_get_logits_ith(context, -1);
                const int64_t best = likeliest(logits);
                float second = -INFINITY;
                for (int64_t token = 0; token < vocab_size_; token++) {
                    second = token == best ? second : std::max(second, logits[token]);
                }
                drawn.emplace_back(static_cast<llama_token>(best), logits[best] - second);
            }
        }
        return drawn;
    }

private:
    static double since(Clock::time_point start) {
        return std::chrono::duration<double>(Clock::now() - start).count();
    }

    llama_token fixed(int i) const {
        return static_cast<llama_token>(static_cast<int64_t>(i) * 7919 % vocab_size_);
    }

    // An empty context for so many sequences of up to `n` tokens.
    llama_context *prepared(int sequences, int n) {
        const int most = llama_model_n_ctx_train(model_.get());
        if (n < 1 || n > most || sequences < 1) {
            throw std::runtime_error("from 1 to " + std::to_string(most) + " tokens, of at least one sequence");
        }
        // One sequence has the model's context, as it would have unasked; many have what they need.
        const int length = sequences == 1 ? most : n;
        auto [found, is_new] = contexts_.try_emplace({sequences, length}, nullptr, &llama_free);
        if (is_new) {
            llama_context_params params = llama_context_default_params();
            params.n_ctx = static_cast<uint32_t>(sequences * length);
            params.n_seq_max = static_cast<uint32_t>(sequences);
            params.n_threads = params.n_threads_batch = threads_;
            params.type_k = params.type_v = kv_;
            if (kv_ == GGML_TYPE_F32) {
                // Which would convert all of them to f16 in every step.
                params.flash_attn_type = LLAMA_FLASH_ATTN_TYPE_DISABLED;
            }
            found->second.reset(llama_init_from_model(model_.get(), params));
            if (!found->second) {
                throw std::runtime_error("no context for " + std::to_string(sequences) + " sequences");
            }
        }
        llama_memory_clear(llama_get_memory(found->second.get()), false);
        return found->second.get();
    }

    void begin() {
        tokens_.clear();
        positions_.clear();
        sequences_.clear();
        wanted_.clear();
    }

    void push(llama_token token, llama_pos pos, llama_seq_id sequence, bool wanted) {
        tokens_.push_back(token);
        positions_.push_back(pos);
        sequences_.push_back(sequence);
        wanted_.push_back(wanted);
    }

    void run(llama_context *context) {
        const size_t n = tokens_.size();
        counts_.assign(n, 1);
        ids_.resize(n);
        for (size_t i = 0; i < n; i++) {
            ids_[i] = &sequences_[i];
        }
        llama_batch batch = {};
        batch.n_tokens = static_cast<int32_t>(n);
        batch.token = tokens_.data();
        batch.pos = positions_.data();
        batch.n_seq_id = counts_.data();
        batch.seq_id = ids_.data();
        batch.logits = wanted_.data();
        if (const int code = llama_decode(context, batch)) {
            throw std::runtime_error("llama_decode has failed with " + std::to_string(code));
        }
    }

    int64_t likeliest(const float *logits) const {
        return std::max_element(logits, logits + vocab_size_) - logits;
    }

    int threads_;
    ggml_type kv_;
    int vocab_size_ = 0;
    std::unique_ptr<llama_model, decltype(&llama_model_free)> model_{nullptr, &llama_model_free};
    std::map<std::pair<int, int>, Context> contexts_;
    volatile int64_t drawn_ = 0;  // so that no arg-max is left out
    std::vector<llama_token> tokens_;
    std::vector<llama_pos> positions_;
    std::vector<llama_seq_id> sequences_;
    std::vector<int32_t> counts_;
    std::vector<llama_seq_id *> ids_;
    std::vector<int8_t> wanted_;
};

// Answers one line.
void answer(Bench &bench, const std::string &line) {
    std::istringstream words(line);
    std::string command;
    words >> command;
    if (std::string text; command == "tokens" && words >> std::ws && std::getline(words, text)) {
        const char *separator = "{\"tokens\": [";
        for (llama_token token : bench.tokens(text)) {
            std::printf("%s%d", separator, token);
            separator = ", ";
        }
        std::puts("]}");
        std::fflush(stdout);
        return;
    }
    std::vector<int> numbers;
    for (int number; words >> number;) {
        numbers.push_back(number);
    }
    if (!words.eof()) {
        throw std::runtime_error("not a number in: " + line);
    }
    if (command == "decode" && numbers.size() == 1) {
        std::printf("{\"seconds\": %.9f}\n", bench.decode(1, numbers[0]));
    } else if (command == "prefill" && numbers.size() == 1) {
        std::printf("{\"seconds\": %.9f}\n", bench.prefill(numbers[0]));
    } else if (command == "batch" && numbers.size() == 2) {
        std::printf("{\"seconds\": %.9f}\n", bench.decode(numbers[0], numbers[1]));
    } else if (command == "logits" && !numbers.empty()) {
        const char *separator = "{\"logits\": [";
        for (float logit : bench.logits({numbers.begin(), numbers.end()})) {
            std::printf("%s%.9g", separator, static_cast<double>(logit));
            separator = ", ";
        }
        std::puts("]}");
    } else if (command == "greedy" && numbers.size() > 1) {
        std::string tokens, margins;
        for (auto [token, margin] : bench.greedy(numbers[0], {numbers.begin() + 1, numbers.end()})) {
            const char *separator = tokens.empty() ? "" : ", ";
            tokens += separator + std::to_string(token);
            margins += separator + std::to_string(margin);
        }
        std::printf("{\"tokens\": [%s], \"margins\": [%s]}\n", tokens.c_str(), margins.c_str());
    } else {
        throw std::runtime_error("unknown request: " + line);
    }
    std::fflush(stdout);
}

int usage() {
    std::cerr << "usage: llama_bench MODEL.gguf --threads N [--kv f32|f16|q8], llama_bench --version, or\n"
                 "       llama_bench --as f32|bf16|q8 MODEL.gguf OUTPUT.gguf\n";
    return 2;
}

}  // namespace

int main(int argc, char **argv) {
    const std::map<std::string, ggml_type> kinds = {
        {"f32", GGML_TYPE_F32}, {"f16", GGML_TYPE_F16}, {"q8", GGML_TYPE_Q8_0}};
    int threads = 0;
    ggml_type kv = GGML_TYPE_F16;
    llama_log_set(
        [](ggml_log_level level, const char *text, void *) {
            if (level == GGML_LOG_LEVEL_ERROR) {
                std::fputs(text, stderr);
            }
        },
        nullptr);
    if (argc == 5 && std::string(argv[1]) == "--as") {
        const std::map<std::string, llama_ftype> types = {{"f32", LLAMA_FTYPE_ALL_F32},
                                                          {"bf16", LLAMA_FTYPE_MOSTLY_BF16},
                                                          {"q8", LLAMA_FTYPE_MOSTLY_Q8_0}};
        const auto type = types.find(argv[2]);
        if (type == types.end()) {
            return usage();
        }
        llama_model_quantize_params params = llama_model_quantize_default_params();
        params.ftype = type->second;
        params.allow_requantize = true;
        return llama_model_quantize(argv[3], argv[4], &params) == 0 ? 0 : 1;
    }
    for (int i = 2; i < argc; i += 2) {
        const std::string flag = argv[i], value = i + 1 < argc ? argv[i + 1] : "";
        if (flag == "--threads") {
            threads = std::atoi(value.c_str());
        } else if (flag == "--kv" && kinds.count(value)) {
            kv = kinds.at(value);
        } else {
            return usage();
        }
    }
    if (argc == 2 && std::string(argv[1]) == "--version") {
        std::cout << "llama.cpp " << llama_version() << " of llama-cpp-python " << PACKAGE_VERSION << '\n';
        return 0;
    }
    if (threads < 1) {
        return usage();
    }
    llama_backend_init();
    try {
        Bench bench(argv[1], threads, kv);
        for (std::string line; std::getline(std::cin, line);) {
            answer(bench, line);
        }
    } catch (const std::exception &error) {
        std::cerr << "llama_bench: " << error.what() << '\n';
        return 1;
    }
}
