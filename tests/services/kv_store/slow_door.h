// A TCP relay that lets connections wait before the first byte passes: a store on a busy machine or
// behind a long line.
#ifndef TERRACE_TESTS_SERVICES_KV_STORE_SLOW_DOOR_H_
#define TERRACE_TESTS_SERVICES_KV_STORE_SLOW_DOOR_H_

#include <arpa/inet.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <string>
#include <thread>
#include <vector>

#include "absl/time/clock.h"
#include "absl/time/time.h"

namespace terrace::testing {

class SlowDoor {
 public:
  // Relays to a port of 127.0.0.1.
  SlowDoor(int port, absl::Duration delay) : port_(port), delay_(delay) {
    listener_ = ::socket(AF_INET, SOCK_STREAM, 0);
    sockaddr_in address = Loopback(0);
    socklen_t size = sizeof(address);
    ::bind(listener_, reinterpret_cast<sockaddr*>(&address), size);
    ::listen(listener_, 16);
    ::getsockname(listener_, reinterpret_cast<sockaddr*>(&address), &size);
    endpoint_ = "127.0.0.1:" + std::to_string(ntohs(address.sin_port));
    threads_.emplace_back([this] { Accept(); });
  }
  // Whoever is connected has to be gone.
  ~SlowDoor() {
    ::shutdown(listener_, SHUT_RDWR);
    threads_[0].join();
    for (size_t i = 1; i < threads_.size(); ++i) threads_[i].join();
    ::close(listener_);
  }
  SlowDoor(const SlowDoor&) = delete;
  SlowDoor& operator=(const SlowDoor&) = delete;

  const std::string& endpoint() const { return endpoint_; }
  int connections() const { return connections_; }

 private:
  static sockaddr_in Loopback(int port) {
    sockaddr_in address = {};
    address.sin_family = AF_INET;
    address.sin_port = htons(static_cast<uint16_t>(port));
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    return address;
  }

  void Accept() {
    int client = -1;
    while ((client = ::accept(listener_, nullptr, nullptr)) >= 0) {
      ++connections_;
      threads_.emplace_back([this, client] { Relay(client); });
    }
  }

  void Relay(int client) const {
    absl::SleepFor(delay_);
    const int store = ::socket(AF_INET, SOCK_STREAM, 0);
    sockaddr_in address = Loopback(port_);
    std::array<pollfd, 2> ends = {pollfd{client, POLLIN, 0}, pollfd{store, POLLIN, 0}};
    std::array<char, 4096> buffer = {};
    bool open = ::connect(store, reinterpret_cast<sockaddr*>(&address), sizeof(address)) == 0;
    while (open && ::poll(ends.data(), ends.size(), -1) > 0) {
      for (size_t i = 0; i < ends.size() && open; ++i) {
        if (ends[i].revents == 0) continue;
        const ssize_t got = ::recv(ends[i].fd, buffer.data(), buffer.size(), 0);
        open = got > 0 &&
               ::send(ends[1 - i].fd, buffer.data(), static_cast<size_t>(got), MSG_NOSIGNAL) == got;
      }
    }
    ::close(client);
    ::close(store);
  }

  const int port_;
  const absl::Duration delay_;
  int listener_ = -1;
  std::string endpoint_;
  std::atomic<int> connections_ = 0;
  // The first accepts, and starts the others.
  std::vector<std::thread> threads_;
};

}  // namespace terrace::testing

#endif  // TERRACE_TESTS_SERVICES_KV_STORE_SLOW_DOOR_H_
