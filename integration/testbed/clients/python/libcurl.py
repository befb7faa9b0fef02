"""Gets a URL with libcurl, and prints the body and, on a line of its own, the status.

Arguments: PROTOCOL AUTHORITY-PEM URL; `version` alone prints that of libcurl and its OpenSSL.
"""

import io
import sys

import pycurl

WITHIN_S = 4
VERSIONS = {
    "http1": pycurl.CURL_HTTP_VERSION_1_1,
    "upgrade": pycurl.CURL_HTTP_VERSION_2_0,
    "h2c": pycurl.CURL_HTTP_VERSION_2_PRIOR_KNOWLEDGE,
    "http2": pycurl.CURL_HTTP_VERSION_2TLS,
    "http3": 31,  # CURL_HTTP_VERSION_3ONLY, which pycurl has no word for.
}


def main():
    if sys.argv[1] == "version":
        print(pycurl.version)
        return
    protocol, authority, url = sys.argv[1:]
    body, curl = io.BytesIO(), pycurl.Curl()
    curl.setopt(pycurl.URL, url)
    curl.setopt(pycurl.CAINFO, authority)
    curl.setopt(pycurl.TIMEOUT, WITHIN_S)
    curl.setopt(pycurl.HTTP_VERSION, VERSIONS.get(protocol, pycurl.CURL_HTTP_VERSION_1_1))
    if protocol == "tls12":
        curl.setopt(pycurl.SSLVERSION, pycurl.SSLVERSION_MAX_TLSv1_2)
    curl.setopt(pycurl.WRITEDATA, body)
    curl.perform()
    print(body.getvalue().decode(), curl.getinfo(pycurl.RESPONSE_CODE), sep="\n")


main()
