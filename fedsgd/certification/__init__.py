"""Certificates: a compressor put through the law suite, and measured on vectors that anybody can make again."""

from fedsgd.certification.certificate import Certificate, LawResult
from fedsgd.certification.runner import certify, certify_all

__all__ = ["Certificate", "LawResult", "certify", "certify_all"]
