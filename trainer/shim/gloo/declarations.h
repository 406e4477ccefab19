// What c10d's ProcessGroupGloo.hpp wants of Gloo's headers, which the wheel leaves out.
//
// Gloo itself is inside libtorch_cpu. The header of the process group holds Gloo's objects by
// pointer only, so names and the functions that its inline code calls are enough: nothing below
// decides a layout that we rely on, and no object of these types is ever made here. The folder has
// one file per name that the header includes.
#pragma once

#include <chrono>
#include <string>
#include <vector>

namespace gloo {

class Context {
public:
    void setTimeout(std::chrono::milliseconds timeout);
};

namespace rendezvous {

class Store {
public:
    virtual ~Store();
    virtual void set(const std::string &key, const std::vector<char> &value) = 0;
    virtual std::vector<char> get(const std::string &key) = 0;
    virtual void wait(const std::vector<std::string> &keys) = 0;
    virtual void
    wait(const std::vector<std::string> &keys, const std::chrono::milliseconds &timeout) = 0;
};

} // namespace rendezvous

namespace transport {

class Device;

class UnboundBuffer {
public:
    virtual ~UnboundBuffer() = 0;
};

} // namespace transport

} // namespace gloo
