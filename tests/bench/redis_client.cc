#include "tests/bench/redis_client.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

#include <algorithm>
#include <array>

#include "absl/strings/str_cat.h"
#include "tests/bench/require.h"

namespace terrace::bench {
namespace {

absl::Span<const std::byte> Bytes(absl::string_view text) {
  return {reinterpret_cast<const std::byte*>(text.data()), text.size()};
}

std::string Bulk(absl::string_view text) {
  return absl::StrCat("$", text.size(), "\r\n", text, "\r\n");
}

}  // namespace

RedisClient::RedisClient(int port) : fd_(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0)) {
  sockaddr_in address = {};
  address.sin_family = AF_INET;
  address.sin_port = htons(static_cast<uint16_t>(port));
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  Require(::connect(fd_, reinterpret_cast<sockaddr*>(&address), sizeof(address)) == 0,
          "connecting to redis");
  const int on = 1;
  ::setsockopt(fd_, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
}

RedisClient::~RedisClient() { ::close(fd_); }

void RedisClient::Send(std::vector<absl::Span<const std::byte>> pieces) {
  for (size_t first = 0; first < pieces.size();) {
    std::vector<iovec> vectors;
    for (size_t i = first; i < pieces.size(); ++i) {
      vectors.push_back({const_cast<std::byte*>(pieces[i].data()), pieces[i].size()});
    }
    const ssize_t sent = ::writev(fd_, vectors.data(), static_cast<int>(vectors.size()));
    Require(sent > 0, "sending to redis");
    for (auto left = static_cast<size_t>(sent); first < pieces.size();) {
      const size_t gone = std::min(left, pieces[first].size());
      pieces[first].remove_prefix(gone);
      left -= gone;
      if (!pieces[first].empty()) break;
      ++first;
    }
  }
}

std::string RedisClient::Line() {
  std::string line;
  std::array<char, 64> seen{};
  while (line.size() < 2 || line.substr(line.size() - 2) != "\r\n") {
    // Not beyond the line: what follows belongs in the caller's memory.
    const ssize_t peeked = ::recv(fd_, seen.data(), seen.size(), MSG_PEEK);
    Require(peeked > 0, "receiving from redis");
    const auto* const end = std::find(seen.data(), seen.data() + peeked, '\n');
    const auto taken = std::min<ptrdiff_t>(end - seen.data() + 1, peeked);
    Require(::recv(fd_, seen.data(), static_cast<size_t>(taken), 0) == taken,
            "receiving from redis");
    line.append(seen.data(), static_cast<size_t>(taken));
  }
  return line.substr(0, line.size() - 2);
}

void RedisClient::Receive(absl::Span<std::byte> out) {
  while (!out.empty()) {
    const ssize_t received = ::recv(fd_, out.data(), out.size(), MSG_WAITALL);
    Require(received > 0, "receiving from redis");
    out.remove_prefix(static_cast<size_t>(received));
  }
}

void RedisClient::Put(const std::string& key, absl::Span<const std::byte> value) {
  const std::string head =
      absl::StrCat("*3\r\n$3\r\nSET\r\n", Bulk(key), "$", value.size(), "\r\n");
  Send({Bytes(head), value, Bytes("\r\n")});
  const std::string reply = Line();
  Require(reply == "+OK", "SET: " + reply);
}

void RedisClient::Get(const std::string& key, absl::Span<std::byte> out) {
  const std::string request = absl::StrCat("*2\r\n$3\r\nGET\r\n", Bulk(key));
  Send({Bytes(request)});
  const std::string reply = Line();
  Require(reply == absl::StrCat("$", out.size()), "GET: " + reply);
  Receive(out);
  Require(Line().empty(), "GET: the end of a value");
}

void RedisClient::Delete(const std::string& key) {
  const std::string request = absl::StrCat("*2\r\n$3\r\nDEL\r\n", Bulk(key));
  Send({Bytes(request)});
  const std::string reply = Line();
  Require(reply == ":1", "DEL: " + reply);
}

}  // namespace terrace::bench
