// What the emulated driver reads in PTX text: version, target, and the entries with the sizes of their
// parameters. It does not look at instructions.
#pragma once

#include <cctype>
#include <cstdlib>
#include <map>
#include <string>
#include <vector>

namespace ptx {

struct Entry {
    std::vector<size_t> sizes; // of the parameters, in bytes
    unsigned threads = 0;      // of .maxntid, 0 if there is none
};

struct Module {
    unsigned version = 0; // 80 for 8.0
    unsigned target = 0;  // 90 for sm_90
    bool exact = false;   // sm_90a: no other device
    std::map<std::string, Entry> entries;
};

inline std::string word(const std::string &text, size_t &at) {
    while (at < text.size() && isspace((unsigned char)text[at])) at++;
    size_t from = at;
    while (at < text.size() && (isalnum((unsigned char)text[at]) || text[at] == '_' || text[at] == '$')) at++;
    return text.substr(from, at - from);
}

// Of `.param .u64 name` or `.param .align 8 .b8 name[72]`, given what follows `.param`.
inline size_t parameter_size(const std::string &text) {
    size_t bracket = text.find('[');
    if (bracket != std::string::npos) return strtoul(text.c_str() + bracket + 1, nullptr, 10);
    size_t at = 0;
    while ((at = text.find('.', at)) != std::string::npos) {
        std::string type = word(text, ++at);
        if (type.size() > 1 && isdigit((unsigned char)type[1])) return strtoul(type.c_str() + 1, nullptr, 10) / 8;
    }
    return 0;
}

// False for what is not PTX.
inline bool parse(const std::string &all, Module &module) {
    // Comments may hold anything.
    std::string text;
    for (size_t i = 0; i < all.size(); i++) {
        if (all.compare(i, 2, "//") == 0) i = std::min(all.find('\n', i), all.size());
        else if (all.compare(i, 2, "/*") == 0) i = std::min(all.find("*/", i + 2), all.size() - 1) + 1;
        if (i < all.size()) text += all[i];
    }
    size_t at = text.find(".version");
    if (at == std::string::npos) return false;
    at += 8;
    unsigned major = unsigned(atoi(word(text, at).c_str()));
    module.version = major * 10 + unsigned(atoi(word(text, ++at).c_str()));
    at = text.find(".target");
    if (at == std::string::npos) return false;
    at += 7;
    std::string target = word(text, at);
    if (target.compare(0, 3, "sm_") != 0) return false;
    module.target = unsigned(atoi(target.c_str() + 3));
    module.exact = !isdigit((unsigned char)target.back());

    for (at = 0; (at = text.find(".entry", at)) != std::string::npos;) {
        at += 6;
        std::string name = word(text, at);
        Entry &entry = module.entries[name];
        size_t open = text.find('(', at), close = text.find(')', at), body = text.find('{', at);
        if (open < close && open < body)
            for (size_t p = open; (p = text.find(".param", p)) < close;) {
                p += 6;
                size_t end = std::min(text.find(',', p), close);
                entry.sizes.push_back(parameter_size(text.substr(p, end - p)));
            }
        size_t threads = text.find(".maxntid", at);
        if (threads < body) {
            threads += 8;
            entry.threads = unsigned(atoi(word(text, threads).c_str()));
        }
    }
    return true;
}

} // namespace ptx
