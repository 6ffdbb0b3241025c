// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

/// @dev Where a service's line stands, in one slot: next version uint40 (0: nothing is final), position uint56, block
///      uint40, quorum uint8, paused uint8, and from bit 152 the beginning of the newest manifest hash. That beginning
///      guards against a publisher that builds on something else, without the cost of reading the whole hash.
type Line is uint256;

using {next, lastPosition, lastBlock, quorumSize, paused, tip} for Line;

function next(Line line) pure returns (uint40) {
    return uint40(Line.unwrap(line));
}

function lastPosition(Line line) pure returns (uint56) {
    return uint56(Line.unwrap(line) >> 40);
}

function lastBlock(Line line) pure returns (uint40) {
    return uint40(Line.unwrap(line) >> 96);
}

function quorumSize(Line line) pure returns (uint8) {
    return uint8(Line.unwrap(line) >> 136);
}

function paused(Line line) pure returns (bool) {
    return uint8(Line.unwrap(line) >> 144) != 0;
}

function tip(Line line) pure returns (bytes13) {
    return bytes13(uint104(Line.unwrap(line) >> 152));
}

/// @title Publishes the hashes of snapshots, so that nobody can pass off another state as the recorded one.
/// @notice Each service has a line of versions that only grows: it begins with any version, and has no gaps from there.
///         Its id is bound to whoever registered it: nobody else can take the id, write to the line or hold it up. A
///         version is final once `quorum` of the line's publishers attested the same values, and is never changed
///         after that.
/// @dev A publication with quorum 1 reads the publisher's slot, writes one new slot (the manifest's hash) and updates
///      one (the Line). The rest is in its event, which is found without a search: the Line names the block of the
///      newest one, and each event that of the one before.
contract SnapshotRegistry {
    /// @dev One slot.
    struct Attestation {
        address publisher;
        uint40 blockNumber;
    }

    struct Service {
        Line line;
        address owner;
        /// @dev In the owner's slot: written once at most, where a line does not begin with version 0.
        uint40 firstVersion;
        address nextOwner;
        address[] publishers;
        mapping(address => bool) isPublisher;
        /// @dev Hashes of the final versions' manifests.
        mapping(uint256 version => bytes32) manifests;
        /// @dev What was attested for versions that took more than one attestation, in the order of arrival.
        mapping(uint256 version => bytes32[]) candidates;
        mapping(bytes32 candidate => Attestation[]) attestations;
    }

    uint256 public constant MAX_PUBLISHERS = 64;
    uint256 public constant MAX_URI_BYTES = 256;

    mapping(bytes32 id => Service) private _services;

    event Registered(bytes32 indexed id, address indexed owner, string name);
    /// @notice A version became final; `publisher` gave the last attestation that it took, and `previousBlock` holds
    ///         the event of the version before; 0: it is the line's first.
    event Final(
        bytes32 indexed id,
        uint40 version,
        address publisher,
        uint56 position,
        bytes32 manifestHash,
        bytes32 previousHash,
        bytes32 stateHash,
        uint40 previousBlock,
        string uri
    );
    /// @notice An attestation that does not make its version final yet.
    event Attested(
        bytes32 indexed id,
        uint40 version,
        address publisher,
        uint56 position,
        bytes32 manifestHash,
        bytes32 previousHash,
        bytes32 stateHash,
        string uri
    );
    event PublishersChanged(bytes32 indexed id, address[] publishers, uint8 quorum);
    event PausedChanged(bytes32 indexed id, bool isPaused);
    event OwnerProposed(bytes32 indexed id, address indexed owner);
    event OwnerChanged(bytes32 indexed id, address indexed owner);

    error AlreadyRegistered();
    error NotRegistered();
    error NotOwner(address owner);
    error NotPublisher(address account);
    error Paused();
    error WrongVersion(uint40 expected);
    error WrongPrevious(bytes32 expected);
    error PositionFell(uint56 former);
    error NoHash();
    error UriTooLong();
    error AlreadyAttested();
    error BadPublisher(address publisher);
    error BadQuorum();

    modifier onlyOwner(bytes32 id) {
        address owner = _services[id].owner;
        if (owner == address(0)) revert NotRegistered();
        if (owner != msg.sender) revert NotOwner(owner);
        _;
    }

    // ---- a service, and who may write to its line

    /// @notice The id of the service `name` that `owner` registers. It stays when the line gets another owner.
    function serviceId(address owner, string calldata name) public pure returns (bytes32) {
        return keccak256(abi.encode(owner, name));
    }

    /// @notice Begins the line of the caller's service `name`.
    function register(string calldata name, address[] calldata publishers, uint8 quorum) external returns (bytes32 id) {
        id = serviceId(msg.sender, name);
        if (_services[id].owner != address(0)) revert AlreadyRegistered();
        _services[id].owner = msg.sender;
        emit Registered(id, msg.sender, name);
        _change(id, publishers, new address[](0), quorum);
    }

    /// @notice Removes and adds publishers and sets the quorum, at once. What a removed one attested no longer counts
    ///         for versions that are not final.
    function changePublishers(bytes32 id, address[] calldata add, address[] calldata remove, uint8 quorum)
        external
        onlyOwner(id)
    {
        _change(id, add, remove, quorum);
    }

    /// @notice While paused nothing is published.
    function setPaused(bytes32 id, bool isPaused) external onlyOwner(id) {
        Line line = _services[id].line;
        _services[id].line = Line.wrap((Line.unwrap(line) & ~(uint256(0xff) << 144)) | (isPaused ? 1 << 144 : 0));
        emit PausedChanged(id, isPaused);
    }

    /// @notice The first of two steps: the line is the new owner's once it accepts. The zero address takes it back.
    function proposeOwner(bytes32 id, address owner) external onlyOwner(id) {
        _services[id].nextOwner = owner;
        emit OwnerProposed(id, owner);
    }

    function acceptOwner(bytes32 id) external {
        Service storage service = _services[id];
        if (msg.sender != service.nextOwner) revert NotOwner(service.nextOwner);
        service.owner = msg.sender;
        service.nextOwner = address(0);
        emit OwnerChanged(id, msg.sender);
    }

    // ---- publishing

    /// @notice Attests that the line's next version has these values; the last attestation that it takes makes it
    ///         final. Who attests other values attests another candidate, and holds nobody up. The line's first version
    ///         may be any, and names no previous hash; publishers who attest different ones attest different
    ///         candidates, too. `uri` tells people where the snapshot is kept, and is not part of what is attested.
    function publish(
        bytes32 id,
        uint40 version,
        uint56 position,
        bytes32 manifestHash,
        bytes32 previousHash,
        bytes32 stateHash,
        string calldata uri
    ) external {
        Service storage service = _services[id];
        if (!service.isPublisher[msg.sender]) revert NotPublisher(msg.sender);
        Line line = service.line;
        if (line.paused()) revert Paused();
        if (version != line.next() && line.next() != 0) revert WrongVersion(line.next());
        if (bytes13(previousHash) != line.tip()) revert WrongPrevious(_manifestBefore(service, version));
        if (position < line.lastPosition()) revert PositionFell(line.lastPosition());
        if (manifestHash == 0) revert NoHash();
        if (bytes(uri).length > MAX_URI_BYTES) revert UriTooLong();

        if (line.quorumSize() > 1) {
            bytes32 candidate = candidateOf(id, version, position, manifestHash, previousHash, stateHash);
            if (_attest(service, version, candidate) < line.quorumSize()) {
                emit Attested(id, version, msg.sender, position, manifestHash, previousHash, stateHash, uri);
                return;
            }
        }

        if (version != line.next()) service.firstVersion = version;
        service.manifests[version] = manifestHash;
        // The sum is checked: the last number of 40 bits is no version, since none could follow it.
        service.line = Line.wrap(
            uint256(version + 1) | (uint256(position) << 40) | (uint256(uint40(block.number)) << 96)
                | (uint256(line.quorumSize()) << 136) | (uint256(uint104(bytes13(manifestHash))) << 152)
        );
        emit Final(id, version, msg.sender, position, manifestHash, previousHash, stateHash, line.lastBlock(), uri);
    }

    // ---- reading

    /// @notice While nothing is final, `nextVersion` and `blockNumber` are 0, and the next version may be any. The final
    ///         ones are those from `firstVersion` to before `nextVersion`; `blockNumber` holds the newest one's event.
    function lineOf(bytes32 id)
        external
        view
        returns (
            address owner,
            address nextOwner,
            uint40 nextVersion,
            uint56 position,
            uint40 blockNumber,
            uint8 quorum,
            bool isPaused,
            uint40 firstVersion
        )
    {
        Service storage service = _services[id];
        Line line = service.line;
        return (
            service.owner,
            service.nextOwner,
            line.next(),
            line.lastPosition(),
            line.lastBlock(),
            line.quorumSize(),
            line.paused(),
            service.firstVersion
        );
    }

    /// @notice The newest final version, and the block of its event. A zero hash: there is none.
    function latest(bytes32 id)
        external
        view
        returns (uint40 version, uint56 position, bytes32 manifestHash, uint40 blockNumber)
    {
        Line line = _services[id].line;
        if (line.next() == 0) return (0, 0, 0, 0);
        version = line.next() - 1;
        return (version, line.lastPosition(), _services[id].manifests[version], line.lastBlock());
    }

    /// @notice The manifest hashes of the final versions from `from` upwards, at most `limit`; zeros for those below the
    ///         line's first.
    function history(bytes32 id, uint40 from, uint256 limit) external view returns (bytes32[] memory hashes) {
        hashes = new bytes32[](_pageLength(_services[id].line.next(), from, limit));
        for (uint256 i = 0; i < hashes.length; ++i) {
            hashes[i] = _services[id].manifests[from + i];
        }
    }

    function publishersOf(bytes32 id) external view returns (address[] memory) {
        return _services[id].publishers;
    }

    /// @notice What was attested for a version that took more than one attestation, in the order of arrival.
    function candidates(bytes32 id, uint40 version, uint256 from, uint256 limit)
        external
        view
        returns (bytes32[] memory page)
    {
        bytes32[] storage all = _services[id].candidates[version];
        page = new bytes32[](_pageLength(all.length, from, limit));
        for (uint256 i = 0; i < page.length; ++i) {
            page[i] = all[from + i];
        }
    }

    function candidateOf(
        bytes32 id,
        uint40 version,
        uint56 position,
        bytes32 manifestHash,
        bytes32 previousHash,
        bytes32 stateHash
    ) public pure returns (bytes32) {
        return keccak256(abi.encode(id, version, position, manifestHash, previousHash, stateHash));
    }

    /// @notice Who attested a candidate, and the blocks of their events.
    function attestations(bytes32 id, bytes32 candidate) external view returns (Attestation[] memory) {
        return _services[id].attestations[candidate];
    }

    // ---- below

    /// @dev Notes the caller's attestation and counts those of present publishers. Who attested already may call again:
    ///      the quorum may be smaller now.
    function _attest(Service storage service, uint40 version, bytes32 candidate) private returns (uint256 count) {
        Attestation[] storage all = service.attestations[candidate];
        bool isNew = true;
        for (uint256 i = 0; i < all.length; ++i) {
            address publisher = all[i].publisher;
            if (publisher == msg.sender) isNew = false;
            if (service.isPublisher[publisher]) ++count;
        }
        if (!isNew) {
            if (count < service.line.quorumSize()) revert AlreadyAttested();
            return count;
        }
        if (all.length == 0) service.candidates[version].push(candidate);
        all.push(Attestation(msg.sender, uint40(block.number)));
        return count + 1;
    }

    function _change(bytes32 id, address[] calldata add, address[] memory remove, uint8 quorum) private {
        Service storage service = _services[id];
        address[] storage all = service.publishers;
        for (uint256 i = 0; i < remove.length; ++i) {
            if (!service.isPublisher[remove[i]]) revert BadPublisher(remove[i]);
            service.isPublisher[remove[i]] = false;
            uint256 place = 0;
            while (all[place] != remove[i]) ++place;
            all[place] = all[all.length - 1];
            all.pop();
        }
        for (uint256 i = 0; i < add.length; ++i) {
            if (add[i] == address(0) || service.isPublisher[add[i]]) revert BadPublisher(add[i]);
            service.isPublisher[add[i]] = true;
            all.push(add[i]);
        }
        if (quorum == 0 || quorum > all.length || all.length > MAX_PUBLISHERS) revert BadQuorum();
        service.line = Line.wrap((Line.unwrap(service.line) & ~(uint256(0xff) << 136)) | (uint256(quorum) << 136));
        emit PublishersChanged(id, all, quorum);
    }

    function _manifestBefore(Service storage service, uint40 version) private view returns (bytes32) {
        return version == 0 ? bytes32(0) : service.manifests[version - 1];
    }

    function _pageLength(uint256 length, uint256 from, uint256 limit) private pure returns (uint256) {
        if (from >= length) return 0;
        return limit < length - from ? limit : length - from;
    }
}
